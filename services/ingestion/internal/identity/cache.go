package identity

import "sync"

// Cache answers "which number has this id" for ids seen lately. It keeps two
// generations of at most size ids each: an id that is used moves to the young
// one, and when that is full the old one is dropped. Safe for concurrent use.
//
// A number, once given to an id, stays, but for an alias in LEGACY projects and a
// partner id that another user takes over: Resolver.Update puts those in the order
// of the transactions, so a cached answer is never wrong for storing events.
// The canonical number beside it may be out of date: it only saves work.
type Cache struct {
	size       int
	mu         sync.RWMutex
	young, old map[int64]map[string]entry
	n          int
}

type entry struct {
	no, canonical uint64
	alias         bool // the number was made for another id
}

// NewCache makes a cache of at most 2 × size ids.
func NewCache(size int) *Cache {
	return &Cache{size: size, young: map[int64]map[string]entry{}, old: map[int64]map[string]entry{}}
}

// get is called under at least a read lock; promote says the id should be put again.
func (c *Cache) get(projectID int64, id []byte) (e entry, ok, promote bool) {
	if e, ok = c.young[projectID][string(id)]; ok {
		return e, true, false
	}
	e, ok = c.old[projectID][string(id)]
	return e, ok, ok
}

func (c *Cache) put(projectID int64, id string, e entry) {
	m := c.young[projectID]
	if m == nil {
		m = map[string]entry{}
		c.young[projectID] = m
	}
	if _, ok := m[id]; !ok {
		if c.n++; c.n > c.size {
			c.old, c.young, c.n = c.young, map[int64]map[string]entry{projectID: {}}, 1
			m = c.young[projectID]
		}
	}
	m[id] = e
}
