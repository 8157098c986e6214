/* What io_uring can do on the kernel this runs on; the lab's self-test runs it in a guest.
 *
 *     ring-probe setup                    one line for each combination of setup flags: yes, or the error
 *     ring-probe read DEVICE KIB [FLAG…]  reads DEVICE with O_DIRECT, KIB at a time, into registered buffers on a
 *                                         ring with these flags, and checks the pattern: every 8-byte word holds
 *                                         its own offset, little-endian
 *
 * On an IOPOLL ring a request must fit the queue: at most max_sectors_kb, and at most max_segments pages (NVMe: 127 of
 * 4 KiB). Kernel 6.1 tries a larger one again and again, and it never completes.
 *
 * Build: cc -O2 -o ring-probe ring-probe.c -luring
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef IORING_SETUP_NO_SQARRAY /* kernel 6.6; headers of 6.1 lack it */
#define IORING_SETUP_NO_SQARRAY (1U << 16)
#endif

enum { DEPTH = 8 };

static const struct { const char *name; unsigned flag; } FLAGS[] = {
    {"SINGLE_ISSUER", IORING_SETUP_SINGLE_ISSUER}, {"COOP_TASKRUN", IORING_SETUP_COOP_TASKRUN},
    {"DEFER_TASKRUN", IORING_SETUP_DEFER_TASKRUN}, {"TASKRUN_FLAG", IORING_SETUP_TASKRUN_FLAG},
    {"SQPOLL", IORING_SETUP_SQPOLL},               {"IOPOLL", IORING_SETUP_IOPOLL},
    {"SUBMIT_ALL", IORING_SETUP_SUBMIT_ALL},       {"CQSIZE", IORING_SETUP_CQSIZE},
    {"CLAMP", IORING_SETUP_CLAMP},                 {"SQE128", IORING_SETUP_SQE128},
    {"CQE32", IORING_SETUP_CQE32},                 {"NO_SQARRAY", IORING_SETUP_NO_SQARRAY},
};
enum { FLAG_COUNT = sizeof FLAGS / sizeof *FLAGS };

static const char *COMBINATIONS[] = {
    "SINGLE_ISSUER", "COOP_TASKRUN", "COOP_TASKRUN SINGLE_ISSUER", "DEFER_TASKRUN", "DEFER_TASKRUN SINGLE_ISSUER",
    "SQPOLL", "SQPOLL SINGLE_ISSUER", "SQPOLL COOP_TASKRUN", "SQPOLL SINGLE_ISSUER DEFER_TASKRUN", "IOPOLL",
    "IOPOLL SINGLE_ISSUER DEFER_TASKRUN", "IOPOLL SQPOLL", "SUBMIT_ALL", "SQE128 CQE32", "NO_SQARRAY",
};

static void die(const char *what, int error) {
    fprintf(stderr, "ring-probe: %s: %s\n", what, strerror(error));
    exit(1);
}

static unsigned flag_named(const char *name) {
    for (int i = 0; i < FLAG_COUNT; i++)
        if (!strcmp(FLAGS[i].name, name)) return FLAGS[i].flag;
    die(name, EINVAL);
    return 0;
}

static void probe_setup(void) {
    for (size_t i = 0; i < sizeof COMBINATIONS / sizeof *COMBINATIONS; i++) {
        struct io_uring_params params = {0};
        char words[128], *rest = words;
        strcpy(words, COMBINATIONS[i]);
        for (char *word; (word = strsep(&rest, " "));) params.flags |= flag_named(word);
        if (params.flags & IORING_SETUP_CQSIZE) params.cq_entries = 4 * DEPTH;
        int ring = syscall(SYS_io_uring_setup, DEPTH, &params);
        printf("%-36s %s\n", COMBINATIONS[i], ring < 0 ? strerrorname_np(errno) : "yes");
        if (ring >= 0) close(ring);
    }
    struct io_uring_params params = {0};
    int ring = syscall(SYS_io_uring_setup, DEPTH, &params);
    if (ring < 0) die("io_uring_setup", errno);
    struct io_uring_probe *probe = calloc(1, sizeof *probe + 256 * sizeof *probe->ops);
    if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_PROBE, probe, 256) < 0) die("IORING_REGISTER_PROBE", errno);
    printf("features 0x%x, last operation %d\n", params.features, probe->last_op);
}

/* Eight reads in flight, each into its own registered buffer; the slot of a completion takes the next block. The
 * device's size is a multiple of the block's. */
static void read_device(const char *path, unsigned block_bytes, unsigned flags) {
    struct io_uring ring;
    struct io_uring_params params = {.flags = flags};
    struct iovec buffers[DEPTH];
    int fd = open(path, O_RDONLY | O_DIRECT);
    if (fd < 0) die(path, errno);
    off_t size = lseek(fd, 0, SEEK_END), submitted = 0;
    int error = io_uring_queue_init_params(DEPTH, &ring, &params);
    if (error) die("io_uring_setup", -error);
    for (int i = 0; i < DEPTH; i++) {
        buffers[i].iov_len = block_bytes;
        if (posix_memalign(&buffers[i].iov_base, 4096, block_bytes)) die("memory", ENOMEM);
    }
    if ((error = io_uring_register_buffers(&ring, buffers, DEPTH))) die("register buffers", -error);

    off_t offsets[DEPTH], done = 0;
    int in_flight = 0, free_slots[DEPTH], free_count = 0;
    for (int i = 0; i < DEPTH; i++) free_slots[free_count++] = i;
    while (done < size) {
        for (; free_count && submitted < size; submitted += block_bytes, in_flight++) {
            int slot = free_slots[--free_count];
            struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
            io_uring_prep_read_fixed(sqe, fd, buffers[slot].iov_base, block_bytes, submitted, slot);
            sqe->user_data = slot;
            offsets[slot] = submitted;
        }
        if ((error = io_uring_submit_and_wait(&ring, 1)) < 0) die("submit", -error);
        struct io_uring_cqe *cqe;
        while (in_flight && !io_uring_peek_cqe(&ring, &cqe)) {
            int slot = cqe->user_data;
            if (cqe->res != (int)block_bytes) die("read", cqe->res < 0 ? -cqe->res : EIO);
            for (uint64_t *word = buffers[slot].iov_base, i = 0; i < block_bytes / 8; i++)
                if (word[i] != offsets[slot] + i * 8) die("wrong data", EILSEQ);
            io_uring_cqe_seen(&ring, cqe);
            free_slots[free_count++] = slot;
            in_flight--;
            done += block_bytes;
        }
    }
    printf("%s: %lld MiB right, %u KiB each, flags 0x%x\n", path, (long long)done >> 20, block_bytes >> 10,
           flags);
}

int main(int count, char **words) {
    if (count == 2 && !strcmp(words[1], "setup")) {
        probe_setup();
    } else if (count >= 4 && !strcmp(words[1], "read")) {
        unsigned flags = 0;
        for (int i = 4; i < count; i++) flags |= flag_named(words[i]);
        read_device(words[2], atoi(words[3]) << 10, flags);
    } else {
        fprintf(stderr, "usage: ring-probe setup | read DEVICE KIB [FLAG…]\n");
        return 2;
    }
    return 0;
}
