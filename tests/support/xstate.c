/*
 * For user-mode Linux 6.1 on a processor with AVX-512 or AMX: preloaded into it.
 *
 * It keeps as much of a process's NT_X86_XSTATE as AVX needs and sets that again, which
 * the host's kernel refuses (EFAULT) when the processor has more: only the whole is taken. What
 * is missing is added here, as the host has it at that moment.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

typedef long (*ptrace_t)(int request, long pid, void *address, void *data);

long ptrace(enum __ptrace_request request, ...)
{
	static ptrace_t next;
	static char whole[1 << 16];
	struct iovec *given, all = { whole, sizeof whole };
	va_list arguments;
	long pid;
	void *address, *data;

	va_start(arguments, request);
	pid = va_arg(arguments, int);
	address = va_arg(arguments, void *);
	data = va_arg(arguments, void *);
	va_end(arguments);
	if (!next)
		next = (ptrace_t)dlsym(RTLD_NEXT, "ptrace");
	given = data;
	if (request == PTRACE_SETREGSET && (long)address == NT_X86_XSTATE &&
	    next(PTRACE_GETREGSET, pid, address, &all) == 0 && given->iov_len < all.iov_len) {
		memcpy(whole, given->iov_base, given->iov_len);
		data = &all;
	}
	return next(request, pid, address, data);
}
