// Exceptions that cross new frames: thrown in new code, caught in old, and the other way round.

#include "subject.h"

#include <stdexcept>
#include <string>

namespace
{

long destroyed;

struct Guard {
    ~Guard() { destroyed += VERSION; }
};

struct Trouble {
    long code;
};

NOINLINE void deepest(long x)
{
    Guard guard;
    if (x % 2) {
        throw Trouble{x * 10 + VERSION};
    }
    throw std::runtime_error("build " + std::to_string(VERSION + x * 0));
}

} // namespace

extern "C" {

// Changed: a frame with something to destroy, between thrower and catcher.
EXPORT long thrower(long x)
{
    Guard guard;
    deepest(x);
    return VERSION;
}

// Changed: throws and catches in the new code; the second build has a handler that the first had not.
EXPORT long catch_inside(long x)
{
    try {
        thrower(x);
    } catch (const Trouble &trouble) {
        return trouble.code + VERSION * 1000;
    } catch (const std::runtime_error &error) {
        return error.what()[6] - '0' + VERSION * 100000;
    }
    return -1;
}

// Changed: an exception of the caller's passes through.
EXPORT long pass_through(long (*callback)(long), long x)
{
    Guard guard;
    return callback(x) + VERSION;
}

EXPORT long count_destroyed(long)
{
    return destroyed;
}
}
