package duck

import (
	"context"
	"database/sql"
	"fmt"
	"slices"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

type dayKey struct {
	project int64
	day     int32
}

// dedupe knows which hashes are stored. Days in use are held as sets, read from the
// table when a day is first touched and dropped, least recently used first, when
// the budget is spent. A day that alone goes beyond the budget has its older hashes
// in files; a small one that does not fit beside others is asked of the table for
// each group. Only the writer uses it.
type dedupe struct {
	dir    string // of the files
	budget int
	held   int // hashes in memory, of all days
	tick   uint64
	stored map[dayKey]int // deduplicable events in the table
	days   map[dayKey]*daySet
}

// daySet is the hashes of one day: the newer ones in memory, the others in files.
type daySet struct {
	set  *hashSet
	rest *spilled // nil while all are in memory
	used uint64
}

func newDedupe(dir string, budget int) *dedupe {
	return &dedupe{dir: dir, budget: budget, stored: map[dayKey]int{}, days: map[dayKey]*daySet{}}
}

// recent is how many groups a set must have been idle before it may be dropped
// to make room: without that, imports over many big days would reload for ever.
const recent = 256

// prepare loads the sets of the days of a group, those that fit.
func (d *dedupe) prepare(ctx context.Context, c *sql.Conn, days map[dayKey]int) error {
	d.tick++
	for k, rows := range days {
		if day := d.days[k]; day != nil {
			day.used = d.tick
			continue
		}
		n := d.stored[k]
		if big := n > d.budget/2 && d.budget > 0; !big && !d.room(n+rows) {
			continue
		}
		if err := d.load(ctx, c, k, n); err != nil {
			d.drop(k)
			return err
		}
	}
	return nil
}

// load reads a day of n events from the table.
func (d *dedupe) load(ctx context.Context, c *sql.Conn, k dayKey, n int) error {
	set, err := newHashSet(min(n, d.budget))
	if err != nil {
		return err
	}
	d.days[k] = &daySet{set: set, used: d.tick}
	if n == 0 {
		return nil
	}
	return query(ctx, c, fmt.Sprintf(`SELECT hash FROM events WHERE project_id=$1 AND day=$2 AND flags & %d = 0`, warehouse.FlagGenerated), []any{k.project, k.day}, func(r *sql.Rows) error {
		var h uint64
		if err := r.Scan(&h); err != nil {
			return err
		}
		isNew, err := d.days[k].set.add(h)
		if isNew {
			d.held++
		}
		if err != nil || d.held <= d.budget {
			return err
		}
		return d.shrink()
	})
}

// add notes a hash of a day that is in memory and reports whether it was new.
func (d *dedupe) add(day *daySet, h uint64) (isNew bool, err error) {
	if day.set.has(h) {
		return false, nil
	}
	if day.rest != nil {
		if there, err := day.rest.has(h); there || err != nil {
			return false, err
		}
	}
	isNew, err = day.set.add(h)
	if isNew {
		d.held++
	}
	return isNew, err
}

// shrink makes room when more is held than the budget allows: idle days are
// dropped, then the greatest set goes to a file, if it is worth one.
func (d *dedupe) shrink() error {
	if d.room(0) {
		return nil
	}
	var key dayKey
	var day *daySet
	for k, x := range d.days {
		if day == nil || x.set.n > day.set.n {
			key, day = k, x
		}
	}
	if day == nil || day.set.n < d.budget/8 {
		return nil // many small days: a little more than the budget
	}
	if day.rest == nil {
		day.rest = &spilled{dir: d.dir}
	}
	n := day.set.n
	err := day.rest.take(day.set)
	if err == nil {
		day.set, err = newHashSet(0)
	}
	if err != nil {
		d.held -= n
		day.set = &hashSet{}
		d.drop(key) // it is read again when it is needed
		return err
	}
	d.held -= n
	return nil
}

// room makes space for n more hashes by dropping idle days.
func (d *dedupe) room(n int) bool {
	for d.held+n > d.budget {
		var oldest dayKey
		var found *daySet
		for k, day := range d.days {
			if day.used+recent < d.tick && (found == nil || day.used < found.used) {
				oldest, found = k, day
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
	day := d.days[k]
	if day == nil {
		return
	}
	d.held -= day.set.n
	day.set.free()
	if day.rest != nil {
		day.rest.close()
	}
	delete(d.days, k)
}

// close gives all memory and files back.
func (d *dedupe) close() {
	for k := range d.days {
		d.drop(k)
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
