/* The executable's side of copied.c: it names the library's data directly. */

extern long shared_counter, shared_table[4];

long host_counter(long by);
long host_where(long unused);
long host_table(long i);

long host_counter(long by)
{
    shared_counter += by;
    return shared_counter;
}

long host_where(long unused)
{
    (void)unused;
    return (long)&shared_counter;
}

long host_table(long i)
{
    return shared_table[i] += 10;
}
