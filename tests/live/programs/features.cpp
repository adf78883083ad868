// What C++ adds to C: virtual functions, run-time types, guarded statics, templates, unnamed namespaces, exceptions,
// objects of each thread.  Every object lives on across builds.

#include "subject.h"

#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <typeinfo>
#include <vector>

struct Shape {
    virtual ~Shape() = default;
    virtual long area() const = 0;
    virtual std::string name() const { return "shape"; }
};

// Exported types: their tables and type information are the module's, and others may compare them.
struct EXPORT Square : Shape {
    explicit Square(long side) : side(side) {}
    long area() const override { return side * side * VERSION; }
    std::string name() const override { return "square" + std::to_string(VERSION); }
    long side;
};

namespace
{

struct Circle final : Shape {
    explicit Circle(long radius) : radius(radius) {}
    long area() const override { return 3 * radius * radius + VERSION * 1000; }
    long radius;
};

struct Problem : std::runtime_error {
    Problem(const std::string &what, long code) : std::runtime_error(what), code(code) {}
    long code;
};

// A static of each type that the template is made for; the compilers give them names of their own.
template <typename T> struct Counted {
    static long count;
    static long add(long by) { return (count += by) * VERSION; }
};
template <typename T> long Counted<T>::count = sizeof(T);

long constructed;

struct Registry {
    Registry() { constructed += VERSION; }
    std::map<std::string, long> names{{"one", 1}};
};

// Constructed once, by whoever comes first, in whatever build.
Registry &registry()
{
    static Registry instance;
    return instance;
}

std::vector<std::unique_ptr<Shape>> shapes;
std::function<long(long)> callback;

struct PerThread {
    PerThread() : value(VERSION * 100) {}
    long value;
};
thread_local PerThread own;

} // namespace

inline long shared_inline = 7; // one for all modules (STB_GNU_UNIQUE)

extern "C" {

EXPORT long make_shapes(long size)
{
    shapes.push_back(std::make_unique<Square>(size));
    shapes.push_back(std::make_unique<Circle>(size));
    callback = [size](long x) { return x * size + VERSION; };
    registry().names["made"] = size;
    return static_cast<long>(shapes.size());
}

// Objects that an older build made find the new functions.
EXPORT long areas(long)
{
    long sum = 0;
    for (const auto &shape : shapes) {
        sum += shape->area();
    }
    return sum;
}

EXPORT long kinds(long)
{
    long squares = 0, circles = 0, named = 0;
    for (const auto &shape : shapes) {
        squares += dynamic_cast<Square *>(shape.get()) != nullptr;
        const Shape &known = *shape;
        circles += typeid(known) == typeid(Circle);
        named += shape->name() == "square" + std::to_string(VERSION);
    }
    return squares * 100 + circles * 10 + named + VERSION * 1000;
}

EXPORT long templates(long by)
{
    return Counted<char>::add(by) * 1000 + Counted<double>::add(by);
}

EXPORT long guarded(long)
{
    return constructed * 1000 + static_cast<long>(registry().names.size()) + VERSION * 100000;
}

EXPORT long caught(long code)
{
    try {
        if (code > 5) {
            throw Problem("more than " + std::to_string(VERSION), code);
        }
        return shapes.at(1000)->area();
    } catch (const Problem &problem) {
        return problem.code * 10 + VERSION + (std::string(problem.what()).size() > 9) * 1000;
    } catch (const std::out_of_range &) {
        return -VERSION;
    }
}

// Made by an older build: its code stays where it is.
EXPORT long call_back(long x)
{
    return callback(x) * 10 + VERSION * 100000;
}

EXPORT long of_this_thread(long by)
{
    return (own.value += by) + VERSION * 10000;
}

EXPORT long inline_variable(long by)
{
    return (shared_inline += by) * VERSION;
}
}
