/* Room for new thread-locals, in the static block of every thread: loaded into the target only when a new build brings
 * a thread-local that its old one had no room for.  Before that the tool cuts the segment to the size that is needed
 * and fills in the initial contents (target/reserve.py). */
__attribute__((visibility("hidden"), tls_model("initial-exec"), aligned(64))) __thread char hu_reserve[1024] =
    "hotupgrade-reserve";

/* An access with the initial-exec model makes the linker ask for a place in static TLS (DF_STATIC_TLS). */
__attribute__((visibility("default"))) void *hu_reserve_place(void);
void *hu_reserve_place(void)
{
    return hu_reserve;
}
