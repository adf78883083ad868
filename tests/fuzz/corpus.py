"""Small real files to start from, built for the run: libraries and a program with all that readers look at."""

from __future__ import annotations

import subprocess
from pathlib import Path

LIBRARY = r"""
extern int outside(int);
extern char **environ;
int exported = 7;
int zeroed[10];
const int constants[4] = {1, 2, 3, 4};
__thread int thread_local = 3;
static __thread int hidden;
static int counter;
static const char *const words[] = {"one", "two", "three"};
static void callback(int *x) { counter += *x; }
static void (*volatile pointer)(int *) = callback;
__attribute__((noinline)) static int helper(int x) { return x * exported + counter++; }
int weak(int x) __attribute__((weak));
int weak(int x) { return helper(x) + hidden++; }
int alias(int x) __attribute__((alias("weak")));
static int first(int x) { return x; }
static int (*choose(void))(int) { return first; }
int chosen(int) __attribute__((ifunc("choose")));
int table(int x)
{
    static int once;
    switch (x) {
    case 0: return outside(1);
    case 1: once++; return 4;
    case 2: return helper(9);
    case 3: pointer(&x); return 17;
    case 4: zeroed[2] = CHANGE; return 1;
    case 5: return words[x % 3][1];
    case 6: return environ != 0;
    case 7: return thread_local++;
    default: return -1;
    }
}
double scale(double x) { return x * 3.25 + 1e100; }
const char *word(unsigned x) { return words[x % 3]; }
struct shape { const char *name; int (*area)(int); };
static int square(int side) { return side * side * CHANGE; }
static const struct shape shapes[] = {{"square", square}, {"circle", helper}};
const struct shape *find(int x) { return &shapes[x]; }
__attribute__((constructor)) static void constructor(void) { counter = 1; }
__attribute__((destructor)) static void destructor(void) { counter = 0; }
"""
THROWS = r"""
struct Bad { int code; };
extern "C" int outside(int);
struct Guard { int *at; ~Guard() { ++*at; } };
static int count;
extern "C" int guarded(int x) noexcept(false)
{
    Guard guard{&count};
    try {
        if (x > CHANGE) throw Bad{x};
        return outside(x);
    } catch (const Bad &bad) {
        return bad.code;
    } catch (int value) {
        return value;
    }
}
extern "C" int quiet(int x) noexcept { return guarded(x); }
extern "C" int main_like(int x) { try { return quiet(x); } catch (...) { throw; } }
"""
TYPES = r"""
enum colour { RED, GREEN = CHANGE, BLUE = -3 };
typedef struct { unsigned flag : 3, more : 5; _Atomic long count; } counted;
struct node { struct node *next; union { long number; char text[CHANGE]; struct { int x, y; }; }; enum colour colour; };
static struct node head = {&head, {CHANGE}, RED};
static counted counter;
typedef int (*callback)(const struct node *, counted);
callback registered;
__thread struct node *current;
int use(struct node *node, callback call, ...)
{
    static int calls;
    for (struct node *n = node ? node : &head; n; n = n->next) {
        calls += n->colour == GREEN ? call(n, counter) : (int) n->x;
    }
    return calls + (current ? current->y : 0);
}
"""
PROGRAM = "int outside(int x) { return x; }\n" + LIBRARY + "int main(void) { return table(3) + word(1)[0]; }\n"
VERSIONS = "ONE { global: exported; table; weak; }; TWO { global: *; } ONE;\n"

SMALL = ("-O2", "-g0", "-Wl,--build-id=sha1", "-Wl,-z,noseparate-code", "-Wl,-z,max-page-size=4096", "-nostartfiles")
SHARED = ("-shared", "-fPIC")
FLAVOURS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "plain": ("c", LIBRARY, SHARED),
    "records": ("c", LIBRARY, (*SHARED, "-Wl,--emit-relocs", "-Wl,-soname,libx.so.1")),
    "versions": ("c", LIBRARY, (*SHARED, "-Wl,--version-script=versions")),
    "packed": ("c", LIBRARY, (*SHARED, "-Wl,-z,pack-relative-relocs", "-Wl,-z,now")),
    "bound": ("c", LIBRARY, (*SHARED, "-Wl,-Bsymbolic", "-Wl,--hash-style=both", "-fno-plt")),
    "throws": ("cc", THROWS, (*SHARED, "-fexceptions")),
    "program": ("c", PROGRAM, ("-pie", "-fPIE", "-Wl,-e,main")),
    "lines": ("c", LIBRARY, (*SHARED, "-g1")),
    "types": ("c", TYPES, (*SHARED, "-g", "-O1")),
    "types-4": ("c", TYPES, (*SHARED, "-gdwarf-4", "-fdebug-types-section", "-gz")),
    "types-cxx": ("cc", THROWS, (*SHARED, "-g", "-fexceptions")),
}


def compiled(folder: Path, flavour: str, change: int = 4) -> Path:
    """One of the files above."""
    suffix, text, flags = FLAVOURS[flavour]
    result = folder / f"{flavour}-{change}"
    if not result.exists():
        (folder / "versions").write_text(VERSIONS)
        source = folder / f"{flavour}.{suffix}"
        source.write_text(text)
        driver = "g++" if suffix == "cc" else "gcc"
        command = [driver, *SMALL, f"-DCHANGE={change}", source.name, *flags, "-o", result.name]
        subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return result


def files(folder: Path, change: int = 4) -> dict[str, bytes]:
    """All of them, by name; what this machine's linker cannot make is left out."""
    found = {}
    for flavour in FLAVOURS:
        try:
            found[flavour] = compiled(folder, flavour, change).read_bytes()
        except subprocess.CalledProcessError:
            continue
    return found
