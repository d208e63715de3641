package duck

import (
	"context"
	"math"
	"regexp"
	"strconv"
	"time"

	duckdb "github.com/duckdb/duckdb-go/v2"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/profile"
)

// Kinds of projection rows. The numbers are stored.
const (
	kindProfile = 0 // the profile itself: property ''
	kindString  = 1
	kindNumber  = 2
	kindBool    = 3 // num is 0 or 1
	kindList    = 5
	kindObject  = 6
	// Elements of a list have the kind of their value plus kindElement.
	kindElement = 10
)

// Apply implements warehouse.Warehouse.
func (s *Store) Apply(ctx context.Context, projectID int64, changes []ledger.Change, merges []ledger.Merge, upTo uint64) (err error) {
	ctx, done, err := s.use(ctx)
	if err != nil {
		return err
	}
	defer done(&err)
	s.feedMu.Lock()
	defer s.feedMu.Unlock()
	s.mu.RLock()
	first := s.seqs[projectID] == 0
	s.mu.RUnlock()
	var last int64
	err = inTx(ctx, s.feeder, func() error {
		if !first { // an empty projection has nothing to replace
			nos := make([]uint64, len(changes))
			for i := range changes {
				nos[i] = changes[i].UserNo
			}
			for _, table := range []string{"projection", "links"} {
				if _, err := s.feeder.ExecContext(ctx, `DELETE FROM `+table+` WHERE project_id=$1 AND user_no IN (SELECT unnest($2::UBIGINT[]))`, projectID, nos); err != nil {
					return err
				}
			}
		}
		if err := appendRows(s.feeder, "projection", func(a *duckdb.Appender) error {
			for i := range changes {
				if c := &changes[i]; c.Props != nil && c.Canonical == c.UserNo {
					if err := project(a, projectID, c); err != nil {
						return err
					}
				}
			}
			return nil
		}); err != nil {
			return err
		}
		if err := appendRows(s.feeder, "links", func(a *duckdb.Appender) error {
			for _, c := range changes {
				if c.Canonical != c.UserNo {
					if err := a.AppendRow(projectID, c.UserNo, c.Canonical); err != nil {
						return err
					}
				}
			}
			return nil
		}); err != nil {
			return err
		}
		if err := appendRows(s.feeder, "merges", func(a *duckdb.Appender) error {
			for _, m := range merges {
				last = max(last, m.AtMS)
				if err := a.AppendRow(projectID, m.UserNo, m.Canonical, m.AtMS, m.Seq); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
		// Delete and insert: an UPDATE would make checkpoints fail while a reader is open.
		if _, err := s.feeder.ExecContext(ctx, `DELETE FROM feed WHERE project_id=$1`, projectID); err != nil {
			return err
		}
		_, err := s.feeder.ExecContext(ctx, `INSERT INTO feed (project_id, seq) VALUES ($1,$2)`, projectID, upTo)
		return err
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seqs[projectID] = upTo
	if len(merges) > 0 {
		s.merged[projectID] = max(s.merged[projectID], last)
	}
	return nil
}

// project appends the rows of one profile.
func project(a *duckdb.Appender, projectID int64, c *ledger.Change) error {
	props, err := profile.Parse(c.Props)
	if err != nil {
		return err
	}
	if len(props) == 0 {
		return nil // not identified: a profile needs at least one property
	}
	if err := a.AppendRow(projectID, "", c.UserNo, uint8(kindProfile), nil, nil, nil, c.Seq); err != nil {
		return err
	}
	row := func(name string, v jsontext.Value, base uint8) error {
		switch v.Kind() {
		case '"':
			b, err := jsontext.AppendUnquote(nil, v)
			if err != nil {
				return err
			}
			var ts any
			if ms, ok := ParseTime(string(b)); ok {
				ts = ms
			}
			return a.AppendRow(projectID, name, c.UserNo, base+kindString, string(b), nil, ts, c.Seq)
		case '0':
			f, err := strconv.ParseFloat(string(v), 64)
			if err != nil || math.IsInf(f, 0) {
				return nil //nolint:nilerr // a number without a value compares with nothing
			}
			return a.AppendRow(projectID, name, c.UserNo, base+kindNumber, nil, f, nil, c.Seq)
		case 't', 'f':
			f := 0.0
			if v.Kind() == 't' {
				f = 1
			}
			return a.AppendRow(projectID, name, c.UserNo, base+kindBool, nil, f, nil, c.Seq)
		case '{':
			return a.AppendRow(projectID, name, c.UserNo, base+kindObject, nil, nil, nil, c.Seq)
		case '[':
			return a.AppendRow(projectID, name, c.UserNo, base+kindList, nil, nil, nil, c.Seq)
		default:
			return nil // null is not set
		}
	}
	for name, v := range props {
		if name == "" {
			continue // reserved for the profile's own row
		}
		if err := row(name, v, 0); err != nil {
			return err
		}
		if v.Kind() != '[' {
			continue
		}
		for _, e := range profile.Elements(v) {
			if err := row(name, e, kindElement); err != nil {
				return err
			}
		}
	}
	return nil
}

// timePattern are the texts that are times, on events and on profiles: a date, and
// then a time of day to the minute, or to the second with a fraction and a zone.
const timePattern = `[0-9]{4}-[0-9]{2}-[0-9]{2}([T ]([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9]([.][0-9]{1,9})?(Z|[+-](0[0-9]|1[0-5])(:?[0-5][0-9])?)?)?)?`

var (
	timeText = regexp.MustCompile(`^` + timePattern + `$`)
	layouts  = []string{"2006-01-02T15:04:05Z07:00", "2006-01-02T15:04:05", time.DateOnly, "2006-01-02T15:04:05Z0700", "2006-01-02T15:04:05Z07", "2006-01-02T15:04"}
)

// ParseTime reads a text as a time, in Unix milliseconds; without a zone it is UTC.
func ParseTime(s string) (ms int64, ok bool) {
	if len(s) < 10 || s[4] != '-' || s[7] != '-' || !timeText.MatchString(s) {
		return 0, false
	}
	if len(s) > 10 {
		s = s[:10] + "T" + s[11:]
	}
	for _, l := range layouts {
		if t, err := time.Parse(l, s); err == nil {
			return t.UnixMicro() / 1000, true
		}
	}
	return 0, false
}

// Reset implements warehouse.Warehouse.
func (s *Store) Reset(ctx context.Context, projectID int64) (err error) {
	ctx, done, err := s.use(ctx)
	if err != nil {
		return err
	}
	defer done(&err)
	s.feedMu.Lock()
	defer s.feedMu.Unlock()
	err = inTx(ctx, s.feeder, func() error {
		for _, table := range []string{"projection", "links", "merges", "feed"} {
			if _, err := s.feeder.ExecContext(ctx, `DELETE FROM `+table+` WHERE project_id=$1`, projectID); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seqs[projectID] = 0
	delete(s.merged, projectID)
	return nil
}

// Sort implements warehouse.Warehouse: a filter reads one property's rows, which
// then lie together.
func (s *Store) Sort(ctx context.Context, projectID int64) (err error) {
	ctx, done, err := s.use(ctx)
	if err != nil {
		return err
	}
	defer done(&err)
	s.feedMu.Lock()
	defer s.feedMu.Unlock()
	return inTx(ctx, s.feeder, func() error {
		for _, q := range []string{
			`CREATE OR REPLACE TEMP TABLE sorting AS SELECT * FROM projection WHERE project_id=$1`,
			`DELETE FROM projection WHERE project_id=$1`,
		} {
			if _, err := s.feeder.ExecContext(ctx, q, projectID); err != nil {
				return err
			}
		}
		for _, q := range []string{`INSERT INTO projection SELECT * FROM sorting ORDER BY property, user_no`, `DROP TABLE sorting`} {
			if _, err := s.feeder.ExecContext(ctx, q); err != nil {
				return err
			}
		}
		return nil
	})
}
