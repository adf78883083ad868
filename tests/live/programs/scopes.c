/* Two statics of one name in one function: only debug information can tell which is which. */

#include "subject.h"

EXPORT long either(long which)
{
#if VERSION >= 2
    if (which >= 20) {
        static long count = 300;
        return ++count;
    }
#endif
    if (which >= 10) {
        static long count = 100;
        return ++count;
    } else {
        static long count = 200;
        return ++count;
    }
}
