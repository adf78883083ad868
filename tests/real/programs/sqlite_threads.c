/* A bank in SQLite: threads move money between accounts, each with a connection of its own or all with one that they
 * share, and look again and again whether the sum is right.  Statements are prepared once, and used to the end.
 *
 * sqlite_threads DATABASE [busy]: answers commands on standard input, one line each. */

#define _GNU_SOURCE
#define SQLITE_ENABLE_SESSION 1
#define SQLITE_ENABLE_PREUPDATE_HOOK 1
#include "sqlite3.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { N_OWN = 4, N_SHARED = 2, N_ACCOUNTS = 64, START = 1000 };

static const char *path;
static sqlite3 *shared;
static bool busy;
static pthread_mutex_t shared_turn = PTHREAD_MUTEX_INITIALIZER;
static atomic_bool done;
static atomic_long transfers, sums, errors;

struct teller {
    sqlite3 *db;
    sqlite3_stmt *begin, *take, *give, *commit, *sum;
    unsigned seed;
    bool shares;
};

static void check(sqlite3 *db, int code, int wanted, const char *what)
{
    if (code != wanted) {
        fprintf(stderr, "%s: %d %s\n", what, code, sqlite3_errmsg(db));
        atomic_fetch_add(&errors, 1);
    }
}

static void must(sqlite3 *db, const char *sql)
{
    check(db, sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK, sql);
}

static sqlite3 *opened(void)
{
    sqlite3 *db;
    check(NULL, sqlite3_open(path, &db), SQLITE_OK, "open");
    sqlite3_busy_timeout(db, 20000);
    must(db, "PRAGMA journal_mode = WAL");
    must(db, "PRAGMA synchronous = OFF");
    return db;
}

static sqlite3_stmt *prepared(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *statement = NULL;
    check(db, sqlite3_prepare_v2(db, sql, -1, &statement, NULL), SQLITE_OK, sql);
    return statement;
}

static void step(struct teller *teller, sqlite3_stmt *statement, int account, int amount)
{
    sqlite3_bind_int(statement, 1, account);
    sqlite3_bind_int(statement, 2, amount);
    check(teller->db, sqlite3_step(statement), SQLITE_DONE, sqlite3_sql(statement));
    sqlite3_reset(statement);
}

static void move(struct teller *teller)
{
    int amount = rand_r(&teller->seed) % 10;
    step(teller, teller->begin, 0, 0);
    step(teller, teller->take, rand_r(&teller->seed) % N_ACCOUNTS, amount);
    step(teller, teller->give, rand_r(&teller->seed) % N_ACCOUNTS, amount);
    step(teller, teller->commit, 0, 0);
    atomic_fetch_add(&transfers, 1);
}

static void look(struct teller *teller)
{
    check(teller->db, sqlite3_step(teller->sum), SQLITE_ROW, "sum");
    if (sqlite3_column_int64(teller->sum, 0) != (long)N_ACCOUNTS * START) {
        fprintf(stderr, "the sum is %lld\n", (long long)sqlite3_column_int64(teller->sum, 0));
        atomic_fetch_add(&errors, 1);
    }
    sqlite3_reset(teller->sum);
    atomic_fetch_add(&sums, 1);
}

/* What a program does all the time: tables, functions and statements that come and go. */
static void plan(struct teller *teller)
{
    sqlite3_stmt *statement = prepared(
        teller->db, "SELECT id, sum(balance) OVER (ORDER BY id) FROM account WHERE balance NOT NULL GROUP BY id");
    int rows = 0;
    while (sqlite3_step(statement) == SQLITE_ROW) {
        rows++;
    }
    check(teller->db, sqlite3_finalize(statement), SQLITE_OK, "plan");
    if (rows != N_ACCOUNTS) {
        atomic_fetch_add(&errors, 1);
    }
}

static void work(struct teller *teller)
{
    if (teller->shares) {
        pthread_mutex_lock(&shared_turn);
    }
    move(teller);
    look(teller);
    plan(teller);
    if (teller->shares) {
        pthread_mutex_unlock(&shared_turn);
    }
}

/* Between two turns a program waits for somebody; never to wait is `sqlite_threads DATABASE busy`. */
static void pause_a_little(struct teller *teller)
{
    if (!busy) {
        usleep(3000 + rand_r(&teller->seed) % 4000);
    }
}

static void *teller_main(void *argument)
{
    struct teller *teller = argument;
    while (!atomic_load(&done)) {
        work(teller);
        pause_a_little(teller);
    }
    sqlite3_finalize(teller->begin);
    sqlite3_finalize(teller->take);
    sqlite3_finalize(teller->give);
    sqlite3_finalize(teller->commit);
    sqlite3_finalize(teller->sum);
    if (!teller->shares) {
        check(teller->db, sqlite3_close(teller->db), SQLITE_OK, "close");
    }
    return NULL;
}

static void hire(struct teller *teller, int number)
{
    teller->shares = number >= N_OWN;
    teller->db = teller->shares ? shared : opened();
    teller->seed = number + 1;
    teller->begin = prepared(teller->db, "BEGIN IMMEDIATE");
    teller->take = prepared(teller->db, "UPDATE account SET balance = balance - ?2 WHERE id = ?1");
    teller->give = prepared(teller->db, "UPDATE account SET balance = balance + ?2 WHERE id = ?1");
    teller->commit = prepared(teller->db, "COMMIT");
    teller->sum = prepared(teller->db, "SELECT sum(balance) FROM account");
}

static void found_bank(void)
{
    char sql[128];
    shared = opened();
    must(shared, "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER)");
    for (int i = 0; i < N_ACCOUNTS; i++) {
        snprintf(sql, sizeof sql, "INSERT INTO account VALUES (%d, %d)", i, START);
        must(shared, sql);
    }
}

/* What the library says of a changeset whose last number is cut off: 100 (a row: it read behind the end, where here
 * the missing byte is), or 11 (corrupt). */
static int overread(void)
{
    sqlite3 *db;
    sqlite3_session *session;
    sqlite3_changeset_iter *changes;
    void *bytes;
    int length, said;
    sqlite3_open(":memory:", &db);
    must(db, "CREATE TABLE t (a INTEGER PRIMARY KEY, b INTEGER)");
    check(db, sqlite3session_create(db, "main", &session), SQLITE_OK, "session");
    sqlite3session_attach(session, NULL);
    must(db, "INSERT INTO t VALUES (1, 1311768467463790320)");
    check(db, sqlite3session_changeset(session, &length, &bytes), SQLITE_OK, "changeset");
    sqlite3changeset_start(&changes, length - 1, bytes);
    said = sqlite3changeset_next(changes);
    sqlite3changeset_finalize(changes);
    sqlite3_free(bytes);
    sqlite3session_delete(session);
    sqlite3_close(db);
    return said;
}

int main(int count, char **words)
{
    struct teller tellers[N_OWN + N_SHARED];
    pthread_t threads[N_OWN + N_SHARED];
    char line[64];
    if (count < 2) {
        return 2;
    }
    path = words[1];
    busy = count > 2;
    found_bank();
    for (int i = 0; i < N_OWN + N_SHARED; i++) {
        hire(&tellers[i], i);
        pthread_create(&threads[i], NULL, teller_main, &tellers[i]);
    }
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (!strncmp(line, "quit", 4)) {
            break;
        }
        printf("overread=%d transfers=%ld sums=%ld errors=%ld\n", overread(), transfers, sums, errors);
        fflush(stdout);
    }
    atomic_store(&done, true);
    for (int i = 0; i < N_OWN + N_SHARED; i++) {
        pthread_join(threads[i], NULL);
    }
    check(shared, sqlite3_close(shared), SQLITE_OK, "close");
    printf("bye errors=%ld\n", errors);
    return errors != 0;
}
