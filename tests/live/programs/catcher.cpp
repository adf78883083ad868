// A library that is never upgraded, and catches what the upgraded one throws.

#include "subject.h"

#include <stdexcept>

extern "C" {
long thrower(long x);
long pass_through(long (*callback)(long), long x);

EXPORT long catch_outside(long x)
{
    try {
        return thrower(x);
    } catch (const std::runtime_error &error) {
        return error.what()[6] - '0';
    } catch (...) {
        return 1000;
    }
}

static long throw_here(long x)
{
    throw x;
}

EXPORT long throw_through(long x)
{
    try {
        return pass_through(throw_here, x);
    } catch (long thrown) {
        return thrown;
    }
}
}
