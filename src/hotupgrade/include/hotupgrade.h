/* Functions that a new build may bring along, for hotupgrade to call when the build takes over in a running process.
 *
 * There is nothing to link: hotupgrade finds them by name.  All of them are optional, take part only in the upgrade to
 * the very build that defines them, and run in the new build's code.  Each returns 0; anything else means that the
 * upgrade is not to be, and the process goes on in the old code as if nothing had happened.
 *
 *   HOTUPGRADE_BEFORE     once, while the program runs: allocate here what will be needed.
 *   HOTUPGRADE_MIGRATE    for one static object, with every thread parked: write the new object from the old one.
 *   HOTUPGRADE_SYNC       once, with every thread parked, after the objects.
 *   HOTUPGRADE_AFTER      once, when the program runs the new code.  A failure here takes the upgrade back.
 *   HOTUPGRADE_CANCEL     once, if HOTUPGRADE_BEFORE succeeded but the upgrade did not come.
 *   HOTUPGRADE_RETURN     for one static object, with every thread parked, when the upgrade is rolled back.
 *   HOTUPGRADE_SYNC_BACK  once, with every thread parked, when the upgrade is rolled back, before the objects.
 *   HOTUPGRADE_TYPE       says that all old instances of a structure or enumeration are dealt with by the above.
 *
 * And HOTUPGRADE_SAFE_POINT, at the end, is where threads leave a loop that never returns.
 *
 * What runs with every thread parked must neither block nor allocate, since the owner of any lock may be among them;
 * it must not write what running code uses (the old object, in HOTUPGRADE_MIGRATE), so that nothing is lost if a later
 * one fails; and it has a few KiB of stack.  See docs/migrations.md. */
#ifndef HOTUPGRADE_H
#define HOTUPGRADE_H

#include <stddef.h>

#ifdef __cplusplus
#define HOTUPGRADE_EXTERN_ extern "C"
#else
#define HOTUPGRADE_EXTERN_ extern
#endif

#define HOTUPGRADE_EXPORT_ __attribute__((visibility("default")))
#define HOTUPGRADE_HOOK_(name, ...)                                                                                    \
    HOTUPGRADE_EXTERN_ HOTUPGRADE_EXPORT_ int name(__VA_ARGS__);                                                       \
    int name(__VA_ARGS__)

#define HOTUPGRADE_BEFORE() HOTUPGRADE_HOOK_(hotupgrade_before, void)
#define HOTUPGRADE_SYNC() HOTUPGRADE_HOOK_(hotupgrade_sync, void)
#define HOTUPGRADE_AFTER() HOTUPGRADE_HOOK_(hotupgrade_after, void)
#define HOTUPGRADE_CANCEL() HOTUPGRADE_HOOK_(hotupgrade_cancel, void)
#define HOTUPGRADE_SYNC_BACK() HOTUPGRADE_HOOK_(hotupgrade_sync_back, void)

/* old_object is never written; new_object holds nothing that can be relied on. */
#define HOTUPGRADE_MIGRATE(object)                                                                                     \
    HOTUPGRADE_HOOK_(hotupgrade_migrate__##object, const void *old_object, size_t old_size, void *new_object,          \
                     size_t new_size)

/* The way back: new_object is what the program used until now, old_object what it is about to use again. */
#define HOTUPGRADE_RETURN(object)                                                                                      \
    HOTUPGRADE_HOOK_(hotupgrade_return__##object, const void *new_object, size_t new_size, void *old_object,           \
                     size_t old_size)

/* type: the tag of a structure, union or enumeration, or the name of a typedef. */
#define HOTUPGRADE_TYPE(type)                                                                                          \
    HOTUPGRADE_EXTERN_ HOTUPGRADE_EXPORT_ const char hotupgrade_type__##type;                                          \
    const char hotupgrade_type__##type = 1

/* For a function that a thread was started with and that never returns, once in it, at a place in its loop where it
 * holds nothing:
 *
 *     static void *worker_main(void *argument)
 *     {
 *         struct worker *worker = argument;
 *         for (;;) {
 *             HOTUPGRADE_SAFE_POINT(NULL);
 *             do_work(worker);
 *         }
 *     }
 *
 * When the function has changed, hotupgrade has the thread leave it here and enter the new code at the top, with the
 * same argument; nobody sees the result.  So what is to outlive that belongs to the argument, not to variables of the
 * function.  It costs one load and one branch.
 *
 * "Asked" is a thread whose own return address is the one that hotupgrade has put in its way, by the low half of
 * that: a thread that was started meanwhile in the new code goes on.  See docs/loops.md. */
#define HOTUPGRADE_SAFE_POINT(result)                                                                                  \
    do {                                                                                                               \
        static volatile unsigned hotupgrade_safe_point __attribute__((used));                                          \
        const unsigned hotupgrade_asked_ = hotupgrade_safe_point;                                                      \
        if (__builtin_expect(hotupgrade_asked_ != 0, 0) &&                                                             \
            hotupgrade_asked_ == (unsigned)(size_t)__builtin_return_address(0)) {                                      \
            return result;                                                                                             \
        }                                                                                                              \
    } while (0)

#endif
