// Package query keeps the answers of profile queries for those who page through
// them: which users or groups were selected, in order. The list is made once, so
// that no page misses or repeats anybody; properties are read page by page.
package query

import (
	"container/list"
	"crypto/rand"
	"encoding/hex"
	"sync"
	"time"

	"github.com/cohortbridge/cohortbridge/platform/fault"
)

// Limits of what is kept, over all projects.
const (
	// Life is how long a selection is kept after it was last read.
	Life = 30 * time.Minute
	// MaxSelections is how many are kept.
	MaxSelections = 1000
	// MaxBytes is about how much memory they take together. A larger one is kept
	// alone, so that it can be read at all.
	MaxBytes = 64 << 20
)

// Owner is who a selection belongs to; nobody else can read it.
type Owner struct {
	// Project is the project's number.
	Project int64
	// Caller is the name of the principal.
	Caller string
}

// Selection is what a query selected.
type Selection struct {
	// GroupKey is the kind of group; empty for users.
	GroupKey string
	// Users are user numbers, Groups group ids, in the order they are answered in.
	Users  []uint64
	Groups []string
	// PageSize is how many make a page.
	PageSize int
	// Made is when it was selected.
	Made time.Time
}

// Total is how many were selected.
func (s *Selection) Total() int { return len(s.Users) + len(s.Groups) }

// Page is the bounds of a page, counted from 0; both are Total beyond the end.
func (s *Selection) Page(n int) (from, to int) {
	total := s.Total()
	if n > total/s.PageSize {
		return total, total
	}
	from = n * s.PageSize
	return from, min(from+s.PageSize, total)
}

func (s *Selection) size() int {
	n := 256 + 8*len(s.Users)
	for _, g := range s.Groups {
		n += 16 + len(g)
	}
	return n
}

// Selections is the store. It is safe for concurrent use. When it is full, what
// was not read for the longest time goes first.
type Selections struct {
	now func() time.Time

	mu    sync.Mutex
	byID  map[string]*list.Element
	used  list.List // of *kept, the one read last in front
	bytes int
}

type kept struct {
	id    string
	owner Owner
	sel   *Selection
	size  int
	read  time.Time
}

// NewSelections makes an empty store.
func NewSelections(now func() time.Time) *Selections {
	return &Selections{now: now, byID: map[string]*list.Element{}}
}

// Put keeps a selection and returns its id.
func (s *Selections) Put(o Owner, sel *Selection) string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	k := &kept{hex.EncodeToString(b[:]), o, sel, sel.size(), s.now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byID[k.id] = s.used.PushFront(k)
	s.bytes += k.size
	for e := s.used.Back(); e != s.used.Front(); e = s.used.Back() {
		old := e.Value.(*kept)
		if s.used.Len() <= MaxSelections && s.bytes <= MaxBytes && k.read.Sub(old.read) <= Life {
			break
		}
		s.drop(e)
	}
	return k.id
}

func (s *Selections) drop(e *list.Element) {
	k := s.used.Remove(e).(*kept)
	delete(s.byID, k.id)
	s.bytes -= k.size
}

// Get returns a selection of its owner. The fault for one that expired, was never
// there, or is somebody else's is the same.
func (s *Selections) Get(o Owner, id string) (*Selection, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.byID[id]
	if ok && s.now().Sub(e.Value.(*kept).read) > Life {
		s.drop(e)
		ok = false
	}
	if !ok || e.Value.(*kept).owner != o {
		f := fault.Field("session_id", "is unknown or has expired; a session lives for 30 minutes after it was last read: start again without session_id and page")
		f.Reason = "SESSION_EXPIRED"
		return nil, f
	}
	k := e.Value.(*kept)
	k.read = s.now()
	s.used.MoveToFront(e)
	return k.sel, nil
}
