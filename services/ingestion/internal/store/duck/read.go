package duck

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/leaf"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

// Evaluate implements warehouse.Warehouse.
func (s *Store) Evaluate(ctx context.Context, projectID int64, leaves []leaf.Leaf, asOf time.Time) (_ *warehouse.Evaluation, err error) {
	ctx, done, err := s.use(ctx)
	if err != nil {
		return nil, err
	}
	defer done(&err)
	c, err := s.db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	// Taken before the snapshot begins, so the snapshot has at least this much.
	s.mu.RLock()
	ev := &warehouse.Evaluation{NewestMS: s.newest[projectID]}
	s.mu.RUnlock()
	err = inTx(ctx, c, func() error {
		if err := c.QueryRowContext(ctx, `SELECT coalesce(max(seq),0) FROM feed WHERE project_id=$1`, projectID).Scan(&ev.Seq); err != nil {
			return err
		}
		var linked bool
		if err := c.QueryRowContext(ctx, `SELECT EXISTS(SELECT 1 FROM links WHERE project_id=$1)`, projectID).Scan(&linked); err != nil {
			return err
		}
		b := &builder{asOf: asOf}
		q := bitmap("SELECT user_no AS u FROM projection WHERE project_id=" + b.arg(projectID) + " AND property='' AND kind=0")
		if ev.Identified, err = users(ctx, c, q, b.args); err != nil {
			return err
		}
		for i := range leaves {
			r, err := evaluate(ctx, c, projectID, &leaves[i], asOf, linked, ev.Identified)
			if err != nil {
				return fmt.Errorf("leaf %d: %w", i, err)
			}
			ev.Leaves = append(ev.Leaves, r)
		}
		return nil
	})
	return ev, err
}

func evaluate(ctx context.Context, q querier, projectID int64, l *leaf.Leaf, asOf time.Time, linked bool, identified *roaring64.Bitmap) (r warehouse.LeafResult, err error) {
	start := time.Now()
	b := &builder{asOf: asOf}
	var text string
	switch {
	case l.Users != nil:
		r.Users, err = current(ctx, q, projectID, l.Users, linked)
		r.Took = time.Since(start)
		return r, err
	case l.Behavior != nil:
		text = b.behavior(projectID, l.Behavior, linked)
	case l.Sequence != nil:
		text = b.sequence(projectID, l.Sequence, linked)
	case l.Property.Op == leaf.IsNotSet:
		set := *l.Property
		set.Op = leaf.IsSet
		text = b.profileFilter(projectID, &set)
	default:
		text = b.profileFilter(projectID, l.Property)
	}
	if r.Users, err = users(ctx, q, text, b.args); err != nil {
		return r, err
	}
	if l.Property != nil && l.Property.Op == leaf.IsNotSet {
		r.Users = roaring64.AndNot(identified, r.Users)
	}
	r.Took = time.Since(start)
	return r, nil
}

// current is who users are now: those that were merged stand for whom they became.
func current(ctx context.Context, q querier, projectID int64, users *roaring64.Bitmap, linked bool) (*roaring64.Bitmap, error) {
	if !linked {
		return users, nil
	}
	out := users.Clone()
	err := query(ctx, q, `SELECT user_no, canonical FROM links WHERE project_id=$1`, []any{projectID}, func(r *sql.Rows) error {
		var no, canonical uint64
		if err := r.Scan(&no, &canonical); err != nil {
			return err
		}
		if users.Contains(no) {
			out.Remove(no)
			out.Add(canonical)
		}
		return nil
	})
	return out, err
}

// users reads a query of words: a number w and the 64 bits of users 64w…64w+63.
func users(ctx context.Context, q querier, text string, args []any) (*roaring64.Bitmap, error) {
	type word struct{ at, bits uint64 }
	var words []word
	err := query(ctx, q, text, args, func(r *sql.Rows) error {
		var w word
		err := r.Scan(&w.at, &w.bits)
		words = append(words, w)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(words, func(a, b word) int {
		if a.at < b.at {
			return -1
		}
		return 1
	})
	bm := roaring64.New()
	buf := make([]uint64, 0, 4096)
	for _, w := range words {
		for v := w.bits; v != 0; v &= v - 1 {
			buf = append(buf, w.at<<6|uint64(bits.TrailingZeros64(v))) //nolint:gosec // 0 to 63
		}
		if len(buf) > 4096-64 {
			bm.AddMany(buf)
			buf = buf[:0]
		}
	}
	bm.AddMany(buf)
	bm.RunOptimize()
	return bm, nil
}

const (
	hourMS = 3_600_000
	// exportChunk is about how many events one query of an export reads: a query
	// over a whole day would hold all of it in memory.
	exportChunk = 50_000
)

// Export implements warehouse.Warehouse. It goes hour by hour, or several at a
// time while they are thin.
func (s *Store) Export(ctx context.Context, q warehouse.ExportQuery, fn func(warehouse.Exported) error) (err error) {
	ctx, done, err := s.use(ctx)
	if err != nil {
		return err
	}
	defer done(&err)
	where := `project_id=$1 AND time_ms>=$2 AND time_ms<$3`
	args := []any{q.ProjectID, q.FromMS, q.ToMS}
	if len(q.Names) > 0 {
		var list []string
		for _, n := range q.Names {
			args = append(args, n)
			list = append(list, fmt.Sprintf("$%d", len(args)))
		}
		where += ` AND name IN (` + strings.Join(list, ",") + `)`
	}
	type hour struct{ at, n int64 }
	var hours []hour
	err = query(ctx, s.db, fmt.Sprintf(`SELECT time_ms // %d, count(*) FROM events WHERE %s GROUP BY 1 ORDER BY 1`, hourMS, where), args, func(r *sql.Rows) error {
		var h hour
		err := r.Scan(&h.at, &h.n)
		hours = append(hours, h)
		return err
	})
	if err != nil {
		return err
	}
	text := `SELECT user_no, name, time_ms, received_ms, insert_id, rule, flags, props FROM events WHERE ` + where
	for i := 0; i < len(hours); {
		from, n := hours[i].at, int64(0)
		to := from
		for i < len(hours) && (n == 0 || n+hours[i].n <= exportChunk) {
			n += hours[i].n
			to = hours[i].at + 1
			i++
		}
		args[1], args[2] = max(q.FromMS, from*hourMS), min(q.ToMS, to*hourMS)
		err := query(ctx, s.db, text, args, func(r *sql.Rows) error {
			var e warehouse.Exported
			if err := r.Scan(&e.UserNo, &e.Name, &e.TimeMS, &e.ReceivedMS, &e.InsertID, &e.Rule, &e.Flags, &e.Props); err != nil {
				return err
			}
			return fn(e)
		})
		if err != nil {
			return err
		}
	}
	return nil
}
