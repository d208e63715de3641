package duck

import (
	"context"
	"database/sql"
	"fmt"
	"math/bits"
	"slices"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

type dayKey struct {
	project int64
	day     int32
}

// dedupe knows which hashes are stored. Days in use are held as sets in memory,
// read from the table when a day is first touched and dropped, least recently
// used first, when the budget is spent. A day that does not fit is asked of the
// table for each group. Only the writer uses it.
type dedupe struct {
	budget int
	held   int // hashes in all sets
	tick   uint64
	stored map[dayKey]int // deduplicable events in the table
	sets   map[dayKey]*hashSet
}

func newDedupe(budget int) *dedupe {
	return &dedupe{budget: budget, stored: map[dayKey]int{}, sets: map[dayKey]*hashSet{}}
}

// recent is how many groups a set must have been idle before it may be dropped
// to make room: without that, imports over many big days would reload for ever.
const recent = 256

// prepare returns the days whose sets are in memory after the call, loading what fits.
func (d *dedupe) prepare(ctx context.Context, c *sql.Conn, days map[dayKey]int) error {
	d.tick++
	for k, rows := range days {
		if set := d.sets[k]; set != nil {
			set.used = d.tick
			continue
		}
		n := d.stored[k]
		if !d.room(n + rows) {
			continue
		}
		set := newHashSet(n + rows)
		set.used = d.tick
		if n > 0 {
			err := query(ctx, c, fmt.Sprintf(`SELECT hash FROM events WHERE project_id=$1 AND day=$2 AND flags & %d = 0`, warehouse.FlagGenerated), []any{k.project, k.day}, func(r *sql.Rows) error {
				var h uint64
				err := r.Scan(&h)
				set.add(h)
				return err
			})
			if err != nil {
				return err
			}
		}
		d.sets[k] = set
		d.held += set.n
	}
	return nil
}

// room makes space for n more hashes by dropping idle sets.
func (d *dedupe) room(n int) bool {
	for d.held+n > d.budget {
		var oldest dayKey
		var found *hashSet
		for k, set := range d.sets {
			if set.used+recent < d.tick && (found == nil || set.used < found.used) {
				oldest, found = k, set
			}
		}
		if found == nil {
			return false
		}
		d.drop(oldest)
	}
	return true
}

func (d *dedupe) drop(k dayKey) {
	if set := d.sets[k]; set != nil {
		d.held -= set.n
		delete(d.sets, k)
	}
}

// probe asks the table which of the rows' keys it has, for days without a set.
func (d *dedupe) probe(ctx context.Context, c *sql.Conn, rows []warehouse.Row, skip func(*warehouse.Row) bool) (map[dayHash]bool, error) {
	type span struct {
		lo, hi int32
		hashes []uint64
	}
	spans := map[int64]*span{}
	for i := range rows {
		r := &rows[i]
		if skip(r) {
			continue
		}
		sp := spans[r.ProjectID]
		if sp == nil {
			sp = &span{lo: r.Day, hi: r.Day}
			spans[r.ProjectID] = sp
		}
		sp.lo, sp.hi = min(sp.lo, r.Day), max(sp.hi, r.Day)
		sp.hashes = append(sp.hashes, r.Hash)
	}
	there := map[dayHash]bool{}
	for p, sp := range spans {
		slices.Sort(sp.hashes)
		err := query(ctx, c, fmt.Sprintf(`SELECT day, hash FROM events WHERE project_id=$1 AND day BETWEEN $2 AND $3 AND flags & %d = 0 AND hash IN (SELECT unnest($4::UBIGINT[]))`, warehouse.FlagGenerated),
			[]any{p, sp.lo, sp.hi, slices.Compact(sp.hashes)}, func(r *sql.Rows) error {
				k := dayHash{dayKey: dayKey{project: p}}
				err := r.Scan(&k.day, &k.hash)
				there[k] = true
				return err
			})
		if err != nil {
			return nil, err
		}
	}
	return there, nil
}

type dayHash struct {
	dayKey
	hash uint64
}

// hashSet is an open-addressed set of 64-bit hashes: 8 bytes a slot, at most ¾
// full. The keys are hashes already, so their bits are used as they are.
type hashSet struct {
	slots []uint64
	mask  uint64
	n     int
	zero  bool // whether 0, the empty slot, is a member
	used  uint64
}

func newHashSet(n int) *hashSet {
	size := 1 << max(6, bits.Len(uint(n+n/2))) //nolint:gosec // n is a count
	return &hashSet{slots: make([]uint64, size), mask: uint64(size - 1)}
}

// add puts h into the set and reports whether it was new.
func (s *hashSet) add(h uint64) bool {
	if h == 0 {
		if s.zero {
			return false
		}
		s.zero = true
		s.n++
		return true
	}
	if (s.n+1)*4 > len(s.slots)*3 {
		old := s.slots
		s.slots = make([]uint64, 2*len(old))
		s.mask = uint64(len(s.slots) - 1)
		for _, v := range old {
			if v != 0 {
				s.put(v)
			}
		}
	}
	if !s.put(h) {
		return false
	}
	s.n++
	return true
}

func (s *hashSet) put(h uint64) bool {
	for i := h & s.mask; ; i = (i + 1) & s.mask {
		switch s.slots[i] {
		case 0:
			s.slots[i] = h
			return true
		case h:
			return false
		}
	}
}
