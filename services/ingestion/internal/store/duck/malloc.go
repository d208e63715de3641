package duck

/*
#include <stdlib.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

static void few_arenas(void) {
#if defined(__GLIBC__) && defined(M_ARENA_MAX)
	if (getenv("MALLOC_ARENA_MAX") == NULL) mallopt(M_ARENA_MAX, 2);
#endif
}
*/
import "C"

// The engine allocates from many threads for a short time each. By default glibc
// gives each thread an arena of its own, and what is freed in one is of no use to
// the others: 40 MB more for the same work.
func init() { C.few_arenas() }
