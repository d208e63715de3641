package duck

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"

	duckdb "github.com/duckdb/duckdb-go/v2"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

// Append implements warehouse.Warehouse.
func (s *Store) Append(ctx context.Context, rows []warehouse.Row) (out warehouse.Appended, err error) {
	ctx, done, err := s.use(ctx)
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
		err = s.write(rows, out.Duplicate)
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
	if err := s.dedupe.shrink(); err != nil {
		// Stored it is: only the memory of it went, and is read again.
		slog.WarnContext(ctx, "dedupe hashes could not be moved to a file", "error", err)
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
		return r.Flags&warehouse.FlagGenerated != 0 || d.days[dayKey{r.ProjectID, r.Day}] != nil
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
	var day *daySet
	var lastKey dayKey
	n := 0
	flush := func() {
		if n > 0 {
			fresh[lastKey] += n
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
			day, lastKey = d.days[k], k
		}
		isNew := false
		if day != nil {
			var err error
			if isNew, err = d.add(day, r.Hash); err != nil {
				return err
			}
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

// write appends rows in one transaction. Outside of BEGIN and COMMIT a flush of the
// Appender is a transaction of its own, and a cheap one: the two statements would
// each be planned, and COMMIT's executor spins while a thread of the engine
// commits. The Appender flushes by itself after 204,800 rows only, ten times what
// the pipeline commits at once; the rows are deduplicated, so that even a group cut
// in two would be stored once.
func (s *Store) write(rows []warehouse.Row, skip []bool) (err error) {
	if s.appender == nil {
		if err := s.newAppender(); err != nil {
			return err
		}
	}
	defer func() {
		if err != nil { // an Appender that failed is of no use any more; nothing of it was stored
			err = scrub(errors.Join(err, s.appender.Clear(), s.appender.Close()))
			s.appender = nil
		}
	}()
	args := s.args[:]
	for i := range rows {
		if skip[i] {
			continue
		}
		r := &rows[i]
		args[0], args[1], args[2], args[3], args[4], args[5], args[6] = r.ProjectID, r.UserNo, r.Name, r.TimeMS, r.ReceivedMS, r.Day, r.Hash
		args[7], args[8], args[9], args[10], args[11], args[12] = r.InsertID, r.Source, r.Rule, r.RulesVersion, r.Flags, r.Props
		if err := s.appender.AppendRow(args...); err != nil {
			return err
		}
	}
	clear(args) // hold no request's memory
	return s.appender.Flush()
}

// newAppender opens the Appender of events; it lives as long as the engine.
func (s *Store) newAppender() error {
	return s.writer.Raw(func(dc any) (err error) {
		conn, ok := dc.(driver.Conn)
		if !ok {
			return fmt.Errorf("unexpected driver connection %T", dc)
		}
		s.appender, err = duckdb.NewAppenderFromConn(conn, "", "events")
		return scrub(err)
	})
}
