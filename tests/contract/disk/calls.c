/*
 * Preloaded into a program, notes in $DISK_CALLS what that asks of the disk below $DISK_FOLDER, a line each, in the order in
 * which it asks: `write FILE`, `fsync FILE`, `rename FROM TO`, `link FROM TO`; FILE by its path below the folder, `.` for the
 * folder itself. What is noted is done, but for the call that stands in $DISK_REFUSES: that fails with EIO.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The path below the folder, NULL where it is elsewhere. */
static const char *below(const char *path)
{
    const char *folder = getenv("DISK_FOLDER");
    size_t length = folder == NULL ? 0 : strlen(folder);

    if (length == 0 || strncmp(path, folder, length) != 0)
        return NULL;
    if (path[length] == '\0')
        return ".";
    return path[length] == '/' ? path + length + 1 : NULL;
}

/* Note a call; whether it is to be refused. */
static int note(const char *call, const char *path, const char *other)
{
    const char *file = below(path), *target = other == NULL ? NULL : below(other);
    const char *refused = getenv("DISK_REFUSES"), *calls = getenv("DISK_CALLS");
    char line[2 * PATH_MAX + 16];
    int length, log;

    if (file == NULL || calls == NULL)
        return 0;
    if (target == NULL)
        length = snprintf(line, sizeof line, "%s %s\n", call, file);
    else
        length = snprintf(line, sizeof line, "%s %s %s\n", call, file, target);
    log = syscall(SYS_openat, AT_FDCWD, calls, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log < 0 || syscall(SYS_write, log, line, length) != length)
        abort();
    syscall(SYS_close, log);
    line[length - 1] = '\0';
    if (refused == NULL || strcmp(refused, line) != 0)
        return 0;
    errno = EIO;
    return 1;
}

static int note_open(const char *call, int descriptor)
{
    char link[64], path[PATH_MAX + 1];
    ssize_t length;

    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, path, PATH_MAX);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return note(call, path, NULL);
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int descriptor, const void *content, size_t length)
{
    return note_open("write", descriptor) ? -1 : REAL(write)(descriptor, content, length);
}

int fsync(int descriptor)
{
    return note_open("fsync", descriptor) ? -1 : REAL(fsync)(descriptor);
}

int rename(const char *from, const char *to)
{
    return note("rename", from, to) ? -1 : REAL(rename)(from, to);
}

int link(const char *from, const char *to)
{
    return note("link", from, to) ? -1 : REAL(link)(from, to);
}
