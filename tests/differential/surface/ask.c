/* Makes the ioctls that it reads and answers with what came of each: see asker.py.
 *
 * Without a C library, so that gcc alone makes a 32-bit one of it, and with its memory always
 * in the same place, so that structures can hold addresses.
 */

#define PAGE 4096
#define BASE 0x20000000UL     /* a page, and nothing after it */
#define READ_ONLY 0x20010000UL /* a page that cannot be written */

typedef unsigned int u32;
typedef unsigned long long u64;

enum { OPEN = 1, CLOSE, IOCTL };
enum { VALUE = 1, MEMORY, AT_THE_EDGE, FROM_READ_ONLY };

struct request {
	u32 operation;
	u32 slot;   /* the number of the descriptor */
	u32 number; /* of the ioctl, or the flags of the open */
	u32 kind;
	u64 value;  /* the argument, or the bytes that are missing */
	u32 length; /* of what follows */
	u32 unused;
};

struct answer {
	int result; /* or the errno, negative */
	u32 length;
};

static char data[PAGE + 1];

#ifdef __i386__
enum { NR_READ = 3, NR_WRITE = 4, NR_OPEN = 5, NR_CLOSE = 6, NR_MPROTECT = 125, NR_IOCTL = 54,
       NR_MMAP = 192, NR_DUP2 = 63, NR_EXIT = 1 };

static long call(long number, long a, long b, long c, long d)
{
	long result;

	/* mmap2 has two more, which are -1 and 0. */
	__asm__ volatile("push %%ebp; xor %%ebp, %%ebp; int $0x80; pop %%ebp"
			 : "=a"(result)
			 : "0"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(-1L)
			 : "memory");
	return result;
}
#else
enum { NR_READ = 0, NR_WRITE = 1, NR_OPEN = 2, NR_CLOSE = 3, NR_MPROTECT = 10, NR_IOCTL = 16,
       NR_MMAP = 9, NR_DUP2 = 33, NR_EXIT = 60 };

static long call(long number, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = -1;
	register long r9 __asm__("r9") = 0;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "0"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}
#endif

static void leave(int status)
{
	for (;;)
		call(NR_EXIT, status, 0, 0, 0);
}

static void transfer(long number, int fd, void *start, u32 length)
{
	char *at = start;

	while (length) {
		long done = call(number, fd, (long)at, length, 0);

		if (done <= 0)
			leave(done || number != NR_READ || at != start);
		at += done;
		length -= done;
	}
}

static void map(unsigned long address)
{
	/* readable and writable; private, fixed, anonymous */
	if (call(NR_MMAP, address, PAGE, 3, 0x32) != (long)address)
		leave(2);
}

static void fill(char *at, u32 length)
{
	for (u32 i = 0; i < PAGE; i++)
		((volatile char *)BASE)[i] = '\xa5';
	for (u32 i = 0; i < length; i++)
		((volatile char *)at)[i] = data[i];
}

static long in_read_only(u32 slot, u32 number, u32 length)
{
	call(NR_MPROTECT, READ_ONLY, PAGE, 3, 0);
	for (u32 i = 0; i < length; i++)
		((volatile char *)READ_ONLY)[i] = data[i];
	call(NR_MPROTECT, READ_ONLY, PAGE, 1, 0);
	return call(NR_IOCTL, slot, number, READ_ONLY, 0);
}

static long ask(struct request *request)
{
	char *at = (char *)BASE;

	switch (request->kind) {
	case VALUE:
		return call(NR_IOCTL, request->slot, request->number, request->value, 0);
	case FROM_READ_ONLY:
		return in_read_only(request->slot, request->number, request->length);
	case AT_THE_EDGE:
		request->length -= request->value;
		at += PAGE - request->length;
	}
	fill(at, request->length);
	return call(NR_IOCTL, request->slot, request->number, (long)at, 0);
}

static long open_at(u32 slot, u32 flags)
{
	long fd = call(NR_OPEN, (long)data, flags, 0, 0);

	if (fd < 0 || fd == (long)slot)
		return fd;
	call(NR_DUP2, fd, slot, 0, 0);
	call(NR_CLOSE, fd, 0, 0, 0);
	return slot;
}

__attribute__((used)) static void serve(void)
{
	struct request request;
	struct answer answer;

	map(BASE);
	map(READ_ONLY);
	for (;;) {
		transfer(NR_READ, 0, &request, sizeof(request));
		if (request.length > PAGE)
			leave(3);
		transfer(NR_READ, 0, data, request.length);
		data[request.length] = 0;
		answer.length = 0;
		switch (request.operation) {
		case OPEN:
			answer.result = open_at(request.slot, request.number);
			break;
		case CLOSE:
			answer.result = call(NR_CLOSE, request.slot, 0, 0, 0);
			break;
		case IOCTL:
			answer.result = ask(&request);
			if (request.kind == MEMORY || request.kind == AT_THE_EDGE)
				answer.length = PAGE;
			break;
		default:
			leave(4);
		}
		transfer(NR_WRITE, 1, &answer, sizeof(answer));
		transfer(NR_WRITE, 1, (void *)BASE, answer.length);
	}
}

/* The stack has the alignment that a called function expects. */
#ifdef __i386__
__asm__(".globl _start\n_start: and $-16, %esp; call serve");
#else
__asm__(".globl _start\n_start: and $-16, %rsp; call serve");
#endif
