/* Faults in the system calls of one process, by LD_PRELOAD; see shim.py for the rules.
 *
 * Rules come from the environment variable FAULTS when the library is loaded, or through
 * faults_arm() in a forked child. Without rules every call goes straight to the kernel. What is
 * done here must be safe in any thread at any time: no malloc, no stdio, no locks.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MOST_RULES 32

enum action { ERRNO, SHORT, TORN, DELAY, BEFORE, AFTER, FREE, JUMP };
static const char *const actions[] = {"errno", "short", "torn", "delay",
                                      "before", "after", "free", "jump"};

struct rule {
  char call[16];
  char glob[PATH_MAX];
  long first, times; /* the first call it is for, counted from 1; 0 times: all from then on */
  enum action action;
  long value;
  long seen;
};

static struct rule rules[MOST_RULES];
static int rule_count;
static int trace = -1;
static char trace_glob[PATH_MAX];
static long offset_realtime, offset_monotonic; /* seconds the clocks are wrong by, now */

/* --- rules */

static void note(char mark, const char *call, const char *path) {
  char line[PATH_MAX + 64];
  if (trace < 0) return;
  int length = snprintf(line, sizeof line, "%c %s %s\n", mark, call, path);
  if (length > 0 && length < (int)sizeof line) syscall(SYS_write, trace, line, length);
}

/* The rule that is due for this call, if any. One of several that are due wins: the first. */
static struct rule *due(const char *call, const char *path, const char *other) {
  struct rule *found = NULL;
  for (int i = 0; i < rule_count; i++) {
    struct rule *rule = &rules[i];
    if (strcmp(rule->call, call)) continue;
    if (fnmatch(rule->glob, path, 0) && (!other || fnmatch(rule->glob, other, 0))) continue;
    long number = __atomic_add_fetch(&rule->seen, 1, __ATOMIC_SEQ_CST);
    if (number < rule->first) continue;
    if (rule->times && number >= rule->first + rule->times) continue;
    if (!found) found = rule;
  }
  return found;
}

static void send(long number) {
  syscall(SYS_kill, getpid(), number);
}

static void wait_for(long milliseconds) {
  struct timespec left = {milliseconds / 1000, milliseconds % 1000 * 1000000};
  while (syscall(SYS_nanosleep, &left, &left) < 0 && errno == EINTR) continue;
}

/* What happens before the call; true where the call is not made and errno is set. */
static int begin(struct rule *rule, const char *call, const char *path) {
  if (trace >= 0 && *trace_glob && !fnmatch(trace_glob, path, 0)) note('.', call, path);
  if (!rule) return 0;
  note('!', call, path);
  if (rule->action == DELAY) wait_for(rule->value);
  if (rule->action == BEFORE) send(rule->value);
  if (rule->action != ERRNO) return 0;
  errno = (int)rule->value;
  return 1;
}

/* What happens after it; gives the call's result back. */
static long end(struct rule *rule, long result) {
  int kept = errno;
  if (rule && rule->action == TORN) send(SIGKILL);
  if (rule && rule->action == AFTER) send(rule->value);
  errno = kept;
  return result;
}

static int idle(void) { return !rule_count && trace < 0; }

static void path_of(int descriptor, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  long length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
  path[length > 0 ? length : 0] = 0;
}

/* As many bytes as the rule lets pass. */
static size_t allowed(struct rule *rule, size_t size) {
  if (!rule || (rule->action != SHORT && rule->action != TORN)) return size;
  return size < (size_t)rule->value ? size : (size_t)rule->value;
}

/* --- files */

static int open_it(int directory, const char *path, int flags, mode_t mode) {
  struct rule *rule = idle() ? NULL : due("open", path, NULL);
  if (!idle() && begin(rule, "open", path)) return -1;
  return (int)end(rule, syscall(SYS_openat, directory, path, flags, mode));
}

#define OPENED(name, parameters, directory)                      \
  int name parameters {                                          \
    mode_t mode = 0;                                             \
    if (flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) {        \
      va_list more;                                              \
      va_start(more, flags);                                     \
      mode = va_arg(more, mode_t);                               \
      va_end(more);                                              \
    }                                                            \
    return open_it(directory, path, flags, mode);                \
  }
OPENED(open, (const char *path, int flags, ...), AT_FDCWD)
OPENED(open64, (const char *path, int flags, ...), AT_FDCWD)
OPENED(openat, (int directory, const char *path, int flags, ...), directory)
OPENED(openat64, (int directory, const char *path, int flags, ...), directory)

/* A call on a descriptor: `made` may use `rule`. */
#define ON_DESCRIPTOR(call, made)                                \
  char path[PATH_MAX];                                           \
  struct rule *rule = NULL;                                      \
  if (idle()) return made;                                       \
  path_of(descriptor, path);                                     \
  rule = due(call, path, NULL);                                  \
  if (begin(rule, call, path)) return -1;                        \
  return end(rule, made);

ssize_t write(int descriptor, const void *data, size_t size) {
  ON_DESCRIPTOR("write", syscall(SYS_write, descriptor, data, allowed(rule, size)))
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t at) {
  ON_DESCRIPTOR("write", syscall(SYS_pwrite64, descriptor, data, allowed(rule, size), at))
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t at) {
  return pwrite64(descriptor, data, size, at);
}

/* Several buffers; a short one ends within the first. */
static long vector(long call, int descriptor, const struct iovec *buffers, int count,
                   struct rule *rule) {
  struct iovec first;
  if (!count || allowed(rule, SIZE_MAX) == SIZE_MAX)
    return syscall(call, descriptor, buffers, count);
  first = buffers[0];
  first.iov_len = allowed(rule, first.iov_len);
  return syscall(call, descriptor, &first, 1);
}

ssize_t writev(int descriptor, const struct iovec *buffers, int count) {
  ON_DESCRIPTOR("write", vector(SYS_writev, descriptor, buffers, count, rule))
}

ssize_t readv(int descriptor, const struct iovec *buffers, int count) {
  ON_DESCRIPTOR("read", vector(SYS_readv, descriptor, buffers, count, rule))
}

ssize_t read(int descriptor, void *data, size_t size) {
  ON_DESCRIPTOR("read", syscall(SYS_read, descriptor, data, allowed(rule, size)))
}

ssize_t pread64(int descriptor, void *data, size_t size, off64_t at) {
  ON_DESCRIPTOR("read", syscall(SYS_pread64, descriptor, data, allowed(rule, size), at))
}

ssize_t pread(int descriptor, void *data, size_t size, off_t at) {
  return pread64(descriptor, data, size, at);
}

int fsync(int descriptor) {
  ON_DESCRIPTOR("fsync", syscall(SYS_fsync, descriptor))
}

int fdatasync(int descriptor) {
  ON_DESCRIPTOR("fsync", syscall(SYS_fdatasync, descriptor))
}

int ftruncate64(int descriptor, off64_t size) {
  ON_DESCRIPTOR("truncate", syscall(SYS_ftruncate, descriptor, size))
}

int ftruncate(int descriptor, off_t size) { return ftruncate64(descriptor, size); }

int posix_fallocate64(int descriptor, off64_t from, off64_t size) {
  char path[PATH_MAX];
  if (idle()) return syscall(SYS_fallocate, descriptor, 0, from, size) ? errno : 0;
  path_of(descriptor, path);
  struct rule *rule = due("truncate", path, NULL);
  int kept = errno, failed = begin(rule, "truncate", path);
  if (!failed) failed = end(rule, syscall(SYS_fallocate, descriptor, 0, from, size)) != 0;
  int code = failed ? errno : 0;
  errno = kept;
  return code;
}

int posix_fallocate(int descriptor, off_t from, off_t size) {
  return posix_fallocate64(descriptor, from, size);
}

/* As in Linux the descriptor is gone even where close() fails. */
int close(int descriptor) {
  char path[PATH_MAX];
  if (idle() || descriptor == trace) return descriptor == trace && trace >= 0
                                                ? 0
                                                : (int)syscall(SYS_close, descriptor);
  path_of(descriptor, path);
  struct rule *rule = due("close", path, NULL);
  if (begin(rule, "close", path)) {
    int kept = errno;
    syscall(SYS_close, descriptor);
    errno = kept;
    return -1;
  }
  return (int)end(rule, syscall(SYS_close, descriptor));
}

/* --- names */

static int rename_it(int from_directory, const char *from, int to_directory, const char *to) {
  struct rule *rule = idle() ? NULL : due("rename", from, to);
  if (!idle() && begin(rule, "rename", to)) return -1;
  return (int)end(rule, syscall(SYS_renameat2, from_directory, from, to_directory, to, 0));
}

int rename(const char *from, const char *to) { return rename_it(AT_FDCWD, from, AT_FDCWD, to); }

int renameat(int from_directory, const char *from, int to_directory, const char *to) {
  return rename_it(from_directory, from, to_directory, to);
}

static int unlink_it(int directory, const char *path, int flags) {
  struct rule *rule = idle() ? NULL : due("unlink", path, NULL);
  if (!idle() && begin(rule, "unlink", path)) return -1;
  return (int)end(rule, syscall(SYS_unlinkat, directory, path, flags));
}

int unlink(const char *path) { return unlink_it(AT_FDCWD, path, 0); }

int unlinkat(int directory, const char *path, int flags) {
  return unlink_it(directory, path, flags);
}

/* --- free space */

static int space(struct rule *rule, int result, struct statvfs *found) {
  if (!result && rule && rule->action == FREE && found->f_frsize)
    found->f_bavail = found->f_bfree = rule->value / found->f_frsize;
  return (int)end(rule, result);
}

static int statvfs_it(const char *path, struct statvfs *found) {
  static int (*real)(const char *, struct statvfs *);
  if (!real) real = dlsym(RTLD_NEXT, "statvfs64");
  if (idle()) return real(path, found);
  struct rule *rule = due("statvfs", path, NULL);
  if (begin(rule, "statvfs", path)) return -1;
  return space(rule, real(path, found), found);
}

static int fstatvfs_it(int descriptor, struct statvfs *found) {
  static int (*real)(int, struct statvfs *);
  char path[PATH_MAX];
  if (!real) real = dlsym(RTLD_NEXT, "fstatvfs64");
  if (idle()) return real(descriptor, found);
  path_of(descriptor, path);
  struct rule *rule = due("statvfs", path, NULL);
  if (begin(rule, "statvfs", path)) return -1;
  return space(rule, real(descriptor, found), found);
}

_Static_assert(sizeof(struct statvfs) == sizeof(struct statvfs64), "a 64-bit system is needed");
int statvfs(const char *path, struct statvfs *found) { return statvfs_it(path, found); }
int statvfs64(const char *path, struct statvfs64 *found) {
  return statvfs_it(path, (struct statvfs *)found);
}
int fstatvfs(int descriptor, struct statvfs *found) { return fstatvfs_it(descriptor, found); }
int fstatvfs64(int descriptor, struct statvfs64 *found) {
  return fstatvfs_it(descriptor, (struct statvfs *)found);
}

/* --- clocks
 *
 * A clock that is wrong must be wrong for waits too: what waits until an instant computed it
 * from the wrong clock, so the instant is put right before the kernel sees it.
 */

int clock_gettime(clockid_t clock, struct timespec *now) {
  static int (*real)(clockid_t, struct timespec *);
  if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
  int result = real(clock, now);
  if (result || !rule_count) return result;
  if (clock != CLOCK_REALTIME && clock != CLOCK_MONOTONIC) return 0;
  struct rule *rule = due("clock", clock == CLOCK_REALTIME ? "realtime" : "monotonic", NULL);
  long *offset = clock == CLOCK_REALTIME ? &offset_realtime : &offset_monotonic;
  long wanted = rule && rule->action == JUMP ? rule->value : 0;
  /* The monotonic clock never goes back. */
  if (clock == CLOCK_REALTIME || wanted > *offset) {
    if (wanted != *offset) note('!', "clock", clock == CLOCK_REALTIME ? "realtime" : "monotonic");
    *offset = wanted;
  }
  now->tv_sec += *offset;
  return 0;
}

static struct timespec put_right(const struct timespec *until, clockid_t clock) {
  struct timespec right = *until;
  right.tv_sec -= clock == CLOCK_REALTIME ? offset_realtime : offset_monotonic;
  return right;
}

/* The clock an instant was probably read from: the one that shows the nearer time. */
static clockid_t clock_of(const struct timespec *until) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  return labs(until->tv_sec - now.tv_sec) < 100000000L ? CLOCK_REALTIME : CLOCK_MONOTONIC;
}

static void *newest(const char *name, const char *version) {
  void *found = dlvsym(RTLD_NEXT, name, version);
  return found ? found : dlsym(RTLD_NEXT, name);
}

int sem_clockwait(sem_t *semaphore, clockid_t clock, const struct timespec *until) {
  static int (*real)(sem_t *, clockid_t, const struct timespec *);
  if (!real) real = newest("sem_clockwait", "GLIBC_2.34");
  struct timespec right = put_right(until, clock);
  return real(semaphore, clock, &right);
}

int sem_timedwait(sem_t *semaphore, const struct timespec *until) {
  static int (*real)(sem_t *, const struct timespec *);
  if (!real) real = newest("sem_timedwait", "GLIBC_2.34");
  struct timespec right = put_right(until, CLOCK_REALTIME);
  return real(semaphore, &right);
}

int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex,
                           const struct timespec *until) {
  static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
  /* Without its version dlsym finds the one of 1997, which has another layout. */
  if (!real) real = newest("pthread_cond_timedwait", "GLIBC_2.3.2");
  if (!offset_realtime && !offset_monotonic) return real(condition, mutex, until);
  struct timespec right = put_right(until, clock_of(until));
  return real(condition, mutex, &right);
}

int pthread_cond_clockwait(pthread_cond_t *condition, pthread_mutex_t *mutex, clockid_t clock,
                           const struct timespec *until) {
  static int (*real)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);
  if (!real) real = newest("pthread_cond_clockwait", "GLIBC_2.34");
  struct timespec right = put_right(until, clock);
  return real(condition, mutex, clock, &right);
}

/* --- arming */

static void parse(char *line) {
  struct rule *rule = &rules[rule_count];
  char action[16];
  if (rule_count == MOST_RULES ||
      sscanf(line, "%15s %4095s %ld %ld %15s %ld", rule->call, rule->glob, &rule->first,
             &rule->times, action, &rule->value) != 6) {
    dprintf(2, "faults: no rule: %s\n", line);
    _exit(98);
  }
  for (int i = 0; i < (int)(sizeof actions / sizeof *actions); i++)
    if (!strcmp(actions[i], action)) {
      rule->action = i;
      rule->seen = 0;
      rule_count++;
      return;
    }
  dprintf(2, "faults: no action: %s\n", action);
  _exit(98);
}

/* `text`: rules, one a line. `trace_to`: where calls on paths like `traced` are noted, or "". */
void faults_arm(const char *text, const char *trace_to, const char *traced) {
  char *lines = strdup(text), *rest = lines;
  for (char *line; (line = strsep(&rest, "\n"));)
    if (*line) parse(line);
  free(lines);
  if (!*trace_to) return;
  int made = syscall(SYS_openat, AT_FDCWD, trace_to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC,
                     0666);
  /* A high number, so that the process under test gets those it would have had. */
  int high = fcntl(made, F_DUPFD_CLOEXEC, 900);
  syscall(SYS_close, made);
  strncpy(trace_glob, traced, sizeof trace_glob - 1);
  trace = high;
}

__attribute__((constructor)) static void arm_from_environment(void) {
  const char *text = getenv("FAULTS"), *to = getenv("FAULTS_TRACE"), *of = getenv("FAULTS_TRACED");
  if (text || to) faults_arm(text ? text : "", to ? to : "", of ? of : "");
}
