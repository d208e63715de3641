package duck

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/mtu"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

// counted is a usage query's FROM and WHERE, of events e of the span: events for
// the events alone, from where user is the SQL of their canonical user as of the
// instant asked for.
type counted struct {
	events, from, user, time string
	args                     []any
}

func (s *Store) counted(q *warehouse.UsageQuery) counted {
	c := counted{user: "e.user_no", time: "e.received_ms", args: []any{q.ProjectID, q.FromMS, q.ToMS}}
	if q.ByEventTime {
		c.time = "e.time_ms"
	}
	s.mu.RLock()
	last, linked := s.merged[q.ProjectID]
	s.mu.RUnlock()
	join := ""
	if linked {
		c.user = "coalesce(l.canonical, e.user_no)"
		links := `SELECT user_no, canonical FROM links WHERE project_id=$1`
		if q.MergedBeforeMS > 0 && last >= q.MergedBeforeMS {
			c.args = append(c.args, q.MergedBeforeMS)
			links = `SELECT user_no, arg_max(canonical, seq) AS canonical FROM merges WHERE project_id=$1 AND at_ms<$4 GROUP BY 1`
		}
		join = ` LEFT JOIN (` + links + `) l ON l.user_no=e.user_no`
	}
	where := ` WHERE e.project_id=$1 AND ` + c.time + `>=$2 AND ` + c.time + `<$3`
	c.events, c.from = ` FROM events e`+where, ` FROM events e`+join+where
	return c
}

// arg adds an argument and returns its placeholder.
func (c *counted) arg(v any) string {
	c.args = append(c.args, v)
	return fmt.Sprintf("$%d", len(c.args))
}

// Usage implements warehouse.Warehouse.
func (s *Store) Usage(ctx context.Context, q warehouse.UsageQuery) (_ *warehouse.Usage, err error) {
	ctx, done, err := s.use(ctx)
	if err != nil {
		return nil, err
	}
	defer done(&err)
	c := s.counted(&q)
	u := &warehouse.Usage{ExemptByRule: map[string]int64{}, BySource: map[string]int64{}}
	// One statement, so that both parts see one snapshot. Numbers are dense: 64 users
	// are one group and a user one bit, which beats counting distinct numbers. User 0
	// is nobody: its events count, it does not.
	text := fmt.Sprintf(`SELECT e.rule, e.source, count(*), count(*) FILTER (e.flags & %d <> 0), 0, 0 %s GROUP BY 1, 2
		UNION ALL SELECT '', '', 0, 0, coalesce(sum(bit_count(q)), 0)::BIGINT, coalesce(sum(bit_count(a & ~q)), 0)::BIGINT
		FROM (SELECT bit_or(CASE WHEN rule='' THEN 1::UBIGINT << (u & 63) ELSE 0::UBIGINT END) AS q, bit_or(1::UBIGINT << (u & 63)) AS a
			FROM (SELECT e.rule AS rule, %s AS u %s AND e.user_no<>0) GROUP BY u >> 6)`, warehouse.FlagGuardrail, c.events, c.user, c.from)
	err = query(ctx, s.db, text, c.args, func(r *sql.Rows) error {
		var rule, source string
		var n, guard, users, only int64
		if err := r.Scan(&rule, &source, &n, &guard, &users, &only); err != nil {
			return err
		}
		u.Users += users
		u.ExemptOnly += only
		u.Guardrail += guard
		if n == 0 {
			return nil
		}
		if rule == "" {
			u.Qualifying += n
		} else {
			u.Exempt += n
			u.ExemptByRule[rule] += n
		}
		u.BySource[source] += n
		return nil
	})
	return u, err
}

// BreakDown implements warehouse.Warehouse.
func (s *Store) BreakDown(ctx context.Context, q warehouse.UsageQuery, by warehouse.GroupBy, limit int) (out []warehouse.UsageGroup, err error) {
	ctx, done, err := s.use(ctx)
	if err != nil {
		return nil, err
	}
	defer done(&err)
	c := s.counted(&q)
	key, day, order := "''", "0", "2"
	switch by {
	case warehouse.ByDay:
		day = fmt.Sprintf("%s // %d", c.time, hourMS*24)
	case warehouse.BySource:
		key, order = "e.source", "n DESC, 1"
	case warehouse.ByEvent:
		key, order = "e.name", "n DESC, 1"
	}
	text := fmt.Sprintf(`SELECT k, d, count(*) FILTER (rule=''), count(*) FILTER (rule<>''), count(DISTINCT u) FILTER (rule='' AND u<>0), count(*) AS n
		FROM (SELECT %s AS k, %s AS d, e.rule AS rule, %s AS u %s) GROUP BY 1, 2 ORDER BY %s LIMIT %d`, key, day, c.user, c.from, order, limit)
	err = query(ctx, s.db, text, c.args, func(r *sql.Rows) error {
		var g warehouse.UsageGroup
		var n int64
		err := r.Scan(&g.Key, &g.Day, &g.Qualifying, &g.Exempt, &g.Users, &n)
		out = append(out, g)
		return err
	})
	return out, err
}

// UserUsage implements warehouse.Warehouse.
func (s *Store) UserUsage(ctx context.Context, q warehouse.UsageQuery, nos []uint64) (_ *warehouse.UserUsage, err error) {
	ctx, done, err := s.use(ctx)
	if err != nil {
		return nil, err
	}
	defer done(&err)
	q.MergedBeforeMS = 0 // the numbers are those of the user as of then
	c := s.counted(&q)
	where := c.from + ` AND e.user_no IN (SELECT unnest(` + c.arg(nos) + `::UBIGINT[]))`
	u := &warehouse.UserUsage{ExemptByRule: map[string]int64{}}
	err = query(ctx, s.db, `SELECT e.rule, count(*)`+where+` GROUP BY 1`, c.args, func(r *sql.Rows) error {
		var rule string
		var n int64
		err := r.Scan(&rule, &n)
		if rule == "" {
			u.Qualifying = n
		} else {
			u.ExemptByRule[rule] = n
		}
		return err
	})
	if err != nil || u.Qualifying == 0 {
		return u, err
	}
	err = query(ctx, s.db, `SELECT e.name, e.source, e.rules_version, e.time_ms, e.received_ms`+where+` AND e.rule='' ORDER BY e.received_ms, e.time_ms, e.name, e.insert_id LIMIT 1`, c.args, func(r *sql.Rows) error {
		u.First = &warehouse.CountedEvent{}
		return r.Scan(&u.First.Name, &u.First.Source, &u.First.RulesVersion, &u.First.TimeMS, &u.First.ReceivedMS)
	})
	return u, err
}

// Days implements warehouse.Warehouse.
func (s *Store) Days(ctx context.Context, projectID int64, from, to int32) (out []warehouse.DayCount, err error) {
	ctx, done, err := s.use(ctx)
	if err != nil {
		return nil, err
	}
	defer done(&err)
	err = query(ctx, s.db, `SELECT day, count(*) FROM events WHERE project_id=$1 AND day BETWEEN $2 AND $3 GROUP BY 1 ORDER BY 1`, []any{projectID, from, to}, func(r *sql.Rows) error {
		var d warehouse.DayCount
		err := r.Scan(&d.Day, &d.Events)
		out = append(out, d)
		return err
	})
	return out, err
}

// Reclassify implements warehouse.Warehouse. Rows are deleted and inserted, not
// updated: after an UPDATE a checkpoint fails while anybody reads. The dedupe
// hashes stay as they are.
func (s *Store) Reclassify(ctx context.Context, projectID int64, day int32, names []string, rulesVersion uint16, judge func(warehouse.Judged) mtu.Verdict) (changed int64, err error) {
	ctx, done, err := s.use(ctx)
	if err != nil {
		return 0, err
	}
	defer done(&err)
	s.writeMu.Lock()
	defer s.writeMu.Unlock()
	b := &builder{}
	partner := "coalesce(" + text(b.property("e.props", "$partner_id")) + ", '')"
	guard := fmt.Sprintf("(e.flags & %d <> 0)", warehouse.FlagGuardrail)
	where := ` WHERE e.project_id=$1 AND e.day=$2 AND (e.rule<>'' OR e.name IN (SELECT unnest($3::VARCHAR[])))`
	type change struct {
		warehouse.Judged
		to mtu.Verdict
	}
	var changes []change
	err = query(ctx, s.writer, `SELECT DISTINCT e.name, e.source, `+partner+`, e.rule, `+guard+` FROM events e`+where, []any{projectID, day, names}, func(r *sql.Rows) error {
		var j warehouse.Judged
		if err := r.Scan(&j.Name, &j.Source, &j.PartnerID, &j.Verdict.Rule, &j.Verdict.Guardrail); err != nil {
			return err
		}
		if to := judge(j); to != j.Verdict {
			changes = append(changes, change{j, to})
		}
		return nil
	})
	if err != nil || len(changes) == 0 {
		return 0, err
	}
	exec := func(text string, args ...any) error {
		_, err := s.writer.ExecContext(ctx, text, args...)
		return err
	}
	err = inTx(ctx, s.writer, func() error {
		if err := exec(`CREATE OR REPLACE TEMP TABLE verdicts (name VARCHAR, source VARCHAR, partner VARCHAR, rule VARCHAR, guard BOOLEAN, to_rule VARCHAR, to_guard BOOLEAN)`); err != nil {
			return err
		}
		for _, c := range changes {
			if err := exec(`INSERT INTO verdicts VALUES ($1,$2,$3,$4,$5,$6,$7)`, c.Name, c.Source, c.PartnerID, c.Verdict.Rule, c.Verdict.Guardrail, c.to.Rule, c.to.Guardrail); err != nil {
				return err
			}
		}
		moved := fmt.Sprintf(`CREATE OR REPLACE TEMP TABLE moved AS SELECT e.* REPLACE (v.to_rule AS rule, %d::USMALLINT AS rules_version, ((e.flags & %d) | (CASE WHEN v.to_guard THEN %d ELSE 0 END))::UTINYINT AS flags), e.rowid AS rid
			FROM events e JOIN verdicts v ON v.name=e.name AND v.source=e.source AND v.partner=%s AND v.rule=e.rule AND v.guard=%s`, rulesVersion, 255&^warehouse.FlagGuardrail, warehouse.FlagGuardrail, partner, guard)
		if err := exec(moved+` WHERE e.project_id=$1 AND e.day=$2`, projectID, day); err != nil {
			return err
		}
		if err := s.writer.QueryRowContext(ctx, `SELECT count(*) FROM moved`).Scan(&changed); err != nil {
			return err
		}
		for _, q := range []string{`DELETE FROM events WHERE rowid IN (SELECT rid FROM moved)`, `INSERT INTO events SELECT * EXCLUDE (rid) FROM moved`, `DROP TABLE moved`, `DROP TABLE verdicts`} {
			if err := exec(q); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("day %d: %w", day, scrub(err))
	}
	return changed, nil
}
