/* What every library under test shares.  VERSION comes from the command line: one source makes every build. */

#ifndef SUBJECT_H
#define SUBJECT_H

#ifndef VERSION
#define VERSION 1
#endif

#define EXPORT __attribute__((visibility("default")))
#define NOINLINE __attribute__((noinline))
#define UNUSED __attribute__((unused))

#endif
