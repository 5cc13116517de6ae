/* Preloaded into linux.uml: restores the registers of a process on any processor.
 *
 * linux.uml has room for 2,696 bytes of floating-point registers. Linux takes them back only
 * together with all the others that the processor has, which are 11,008 bytes with AMX. No
 * process of the machine uses those others: they stay zero.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

#define NT_X86_XSTATE 0x202L /* linux/elf.h */

long ptrace(enum __ptrace_request request, ...)
{
	static long (*real)(enum __ptrace_request, ...);
	static char whole[1 << 16];
	static size_t size;
	struct iovec all = {whole, sizeof whole};
	const struct iovec *part;
	va_list given;
	pid_t pid;
	void *where, *data;

	va_start(given, request);
	pid = va_arg(given, pid_t);
	where = va_arg(given, void *);
	data = va_arg(given, void *);
	va_end(given);
	if (real == NULL)
		real = (long (*)(enum __ptrace_request, ...)) dlsym(RTLD_NEXT, "ptrace");
	if (request != PTRACE_SETREGSET || where != (void *) NT_X86_XSTATE)
		return real(request, pid, where, data);
	if (size == 0) {
		if (real(PTRACE_GETREGSET, pid, where, &all) != 0)
			return -1;
		size = all.iov_len;
		memset(whole, 0, sizeof whole);
	}
	part = data;
	if (part->iov_len >= size)
		return real(request, pid, where, data);
	memcpy(whole, part->iov_base, part->iov_len);
	all.iov_len = size;
	return real(request, pid, where, &all);
}
