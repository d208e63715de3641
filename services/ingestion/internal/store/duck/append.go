package duck

import (
	"context"
	"database/sql/driver"

	duckdb "github.com/duckdb/duckdb-go/v2"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

// Append implements warehouse.Warehouse.
func (s *Store) Append(ctx context.Context, rows []warehouse.Row) (out warehouse.Appended, err error) {
	done, err := s.use(ctx)
	if err != nil {
		return out, err
	}
	defer done(&err)
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	days := map[dayKey]int{}
	var last *int
	var lastKey dayKey
	counts := map[dayKey]*int{}
	for i := range rows {
		r := &rows[i]
		if r.Flags&warehouse.FlagGenerated != 0 {
			continue
		}
		k := dayKey{r.ProjectID, r.Day}
		if last == nil || k != lastKey {
			if counts[k] == nil {
				counts[k] = new(int)
			}
			last, lastKey = counts[k], k
		}
		*last++
	}
	for k, n := range counts {
		days[k] = *n
	}
	if err := s.dedupe.prepare(ctx, s.writer, days); err != nil {
		return out, err
	}
	out.Duplicate = make([]bool, len(rows))
	fresh := map[dayKey]int{}
	if err := s.mark(ctx, rows, &out, fresh); err != nil {
		s.forget(days)
		return out, err
	}
	if out.Duplicates < len(rows) {
		err = inTx(ctx, s.writer, func() error { return s.write(rows, out.Duplicate) })
	}
	if err != nil {
		// The sets hold hashes that are not stored: read them again when needed.
		s.forget(days)
		return warehouse.Appended{}, err
	}
	out.Stored = len(rows) - out.Duplicates
	for k, n := range fresh {
		s.dedupe.stored[k] += n
	}
	s.mu.Lock()
	for i := range rows {
		if !out.Duplicate[i] {
			p := rows[i].ProjectID
			s.count[p]++
			s.newest[p] = max(s.newest[p], rows[i].ReceivedMS)
		}
	}
	s.mu.Unlock()
	return out, nil
}

func (s *Store) forget(days map[dayKey]int) {
	for k := range days {
		s.dedupe.drop(k)
	}
}

// mark finds the duplicates: rows that are stored, or came earlier in the group.
func (s *Store) mark(ctx context.Context, rows []warehouse.Row, out *warehouse.Appended, fresh map[dayKey]int) error {
	d := s.dedupe
	var there map[dayHash]bool
	inMemory := func(r *warehouse.Row) bool {
		return r.Flags&warehouse.FlagGenerated != 0 || d.sets[dayKey{r.ProjectID, r.Day}] != nil
	}
	for i := range rows {
		if !inMemory(&rows[i]) {
			var err error
			if there, err = d.probe(ctx, s.writer, rows, inMemory); err != nil {
				return err
			}
			break
		}
	}
	var set *hashSet
	var lastKey dayKey
	n := 0
	flush := func() {
		if n > 0 {
			fresh[lastKey] += n
			if set != nil {
				d.held += n
			}
		}
		n = 0
	}
	for i := range rows {
		r := &rows[i]
		if r.Flags&warehouse.FlagGenerated != 0 {
			continue
		}
		k := dayKey{r.ProjectID, r.Day}
		if k != lastKey {
			flush()
			set, lastKey = d.sets[k], k
		}
		isNew := false
		if set != nil {
			isNew = set.add(r.Hash)
		} else if h := (dayHash{k, r.Hash}); !there[h] {
			there[h] = true
			isNew = true
		}
		if isNew {
			n++
		} else {
			out.Duplicate[i] = true
			out.Duplicates++
		}
	}
	flush()
	return nil
}

func (s *Store) write(rows []warehouse.Row, skip []bool) error {
	return appendRows(s.writer, "events", func(a *duckdb.Appender) error {
		args := make([]driver.Value, 13)
		for i := range rows {
			if skip[i] {
				continue
			}
			r := &rows[i]
			args[0], args[1], args[2], args[3], args[4], args[5], args[6] = r.ProjectID, r.UserNo, r.Name, r.TimeMS, r.ReceivedMS, r.Day, r.Hash
			args[7], args[8], args[9], args[10], args[11], args[12] = r.InsertID, r.Source, r.Rule, r.RulesVersion, r.Flags, r.Props
			if err := a.AppendRow(args...); err != nil {
				return err
			}
		}
		return nil
	})
}
