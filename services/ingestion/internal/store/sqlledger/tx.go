package sqlledger

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
)

// tx is a ledger.Tx. The context is the transaction's own: it lives exactly as long.
type tx struct {
	ctx       context.Context //nolint:containedctx // see above
	q         *sql.Tx
	p         int64
	next, seq uint64
}

// insertRows is how many rows one INSERT carries; see chunk.
const insertRows = 16

// insert writes rows of cols values each. Full statements are prepared once.
func (t *tx) insert(head, tail string, cols int, args []any) (err error) {
	text := func(rows int) string {
		var b strings.Builder
		b.WriteString(head)
		for i := range rows {
			if i > 0 {
				b.WriteByte(',')
			}
			fmt.Fprintf(&b, "(%s)", placeholders(i*cols+1, cols))
		}
		b.WriteString(tail)
		return b.String()
	}
	var full *sql.Stmt
	if len(args) >= 2*cols*insertRows {
		if full, err = t.q.PrepareContext(t.ctx, text(insertRows)); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, full.Close()) }()
	}
	for part := range slices.Chunk(args, cols*insertRows) {
		if full != nil && len(part) == cols*insertRows {
			_, err = full.ExecContext(t.ctx, part...)
		} else {
			_, err = t.q.ExecContext(t.ctx, text(len(part)/cols), part...)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// IDs implements ledger.Tx.
func (t *tx) IDs(ids []string) (map[string]ledger.ID, error) {
	return selectIDs(t.ctx, t.q, t.p, ids)
}

// Former implements ledger.Tx.
func (t *tx) Former(id string) (uint64, error) { return former(t.ctx, t.q, t.p, id) }

// Users implements ledger.Tx.
func (t *tx) Users(nos []uint64) (map[uint64]ledger.User, error) {
	return selectUsers(t.ctx, t.q, t.p, nos)
}

// NewUsers implements ledger.Tx.
func (t *tx) NewUsers(ids []string, at time.Time) ([]ledger.ID, error) {
	out := make([]ledger.ID, len(ids))
	users, names := make([]any, 0, 4*len(ids)), make([]any, 0, 5*len(ids))
	for i, id := range ids {
		no := t.next
		t.next++
		out[i] = ledger.ID{DistinctID: id, UserNo: no, Canonical: no, Reason: ledger.FirstSeen, At: at}
		users = append(users, t.p, no, no, id)
		names = append(names, t.p, id, no, uint8(ledger.FirstSeen), at.UnixMilli())
	}
	if err := t.insert(`INSERT INTO users (project_id, user_no, canonical, distinct_id) VALUES `, ``, 4, users); err != nil {
		return nil, err
	}
	return out, t.insert(`INSERT INTO ids (project_id, distinct_id, user_no, reason, at_ms) VALUES `, ``, 5, names)
}

// AddAlias implements ledger.Tx.
func (t *tx) AddAlias(id string, no uint64, l ledger.Link) (ledger.ID, error) {
	if _, err := t.q.ExecContext(t.ctx, `INSERT INTO ids (project_id, distinct_id, user_no, reason, at_ms, linked_to) VALUES ($1,$2,$3,$4,$5,$6)`, t.p, id, no, uint8(l.Reason), l.At.UnixMilli(), l.To); err != nil {
		return ledger.ID{}, err
	}
	if _, err := t.q.ExecContext(t.ctx, `UPDATE users SET ids=ids+1, seq=$3 WHERE project_id=$1 AND user_no=$2`, t.p, no, t.nextSeq()); err != nil {
		return ledger.ID{}, err
	}
	return ledger.ID{DistinctID: id, UserNo: no, Canonical: no, Reason: l.Reason, At: l.At, LinkedTo: l.To, Alias: true}, nil
}

// Repoint implements ledger.Tx.
func (t *tx) Repoint(id string, no uint64, l ledger.Link) error {
	// A user who loses the first id stays a user, and is found by it (see Former).
	if _, err := t.q.ExecContext(t.ctx, `INSERT INTO former_users (project_id, distinct_id, user_no) SELECT u.project_id, u.distinct_id, u.user_no
		FROM ids i JOIN users u ON u.project_id=i.project_id AND u.user_no=i.user_no WHERE i.project_id=$1 AND i.distinct_id=$2 AND u.distinct_id=$2 AND u.canonical=u.user_no`, t.p, id); err != nil {
		return err
	}
	if _, err := t.q.ExecContext(t.ctx, `UPDATE users SET ids=ids-1, seq=$3 WHERE project_id=$1 AND user_no=(SELECT u.canonical FROM ids i JOIN users u ON u.project_id=i.project_id AND u.user_no=i.user_no WHERE i.project_id=$1 AND i.distinct_id=$2)`, t.p, id, t.nextSeq()); err != nil {
		return err
	}
	if _, err := t.q.ExecContext(t.ctx, `UPDATE ids SET user_no=$3, reason=$4, at_ms=$5, linked_to=$6 WHERE project_id=$1 AND distinct_id=$2`, t.p, id, no, uint8(l.Reason), l.At.UnixMilli(), l.To); err != nil {
		return err
	}
	_, err := t.q.ExecContext(t.ctx, `UPDATE users SET ids=ids+1, seq=$3 WHERE project_id=$1 AND user_no=$2`, t.p, no, t.nextSeq())
	return err
}

// Merge implements ledger.Tx.
func (t *tx) Merge(from, into uint64, l ledger.Link) error {
	var moved []uint64
	var first string
	var ids int
	if err := t.q.QueryRowContext(t.ctx, `SELECT distinct_id, ids FROM users WHERE project_id=$1 AND user_no=$2`, t.p, from).Scan(&first, &ids); err != nil {
		return err
	}
	err := each(t.ctx, t.q, `SELECT user_no FROM users WHERE project_id=$1 AND canonical=$2 AND canonical<>user_no`, []any{t.p, from}, func(rows *sql.Rows) error {
		var no uint64
		err := rows.Scan(&no)
		moved = append(moved, no)
		return err
	})
	if err != nil {
		return err
	}
	for _, no := range append(moved, from) {
		seq := t.nextSeq()
		if _, err := t.q.ExecContext(t.ctx, `UPDATE users SET canonical=$3, seq=$4 WHERE project_id=$1 AND user_no=$2`, t.p, no, into, seq); err != nil {
			return err
		}
		if _, err := t.q.ExecContext(t.ctx, `INSERT INTO merges (project_id, seq, user_no, canonical, at_ms) VALUES ($1,$2,$3,$4,$5)`, t.p, seq, no, into, l.At.UnixMilli()); err != nil {
			return err
		}
	}
	if _, err := t.q.ExecContext(t.ctx, `UPDATE users SET ids=ids+$3, seq=$4 WHERE project_id=$1 AND user_no=$2`, t.p, into, ids, t.nextSeq()); err != nil {
		return err
	}
	if _, err := t.q.ExecContext(t.ctx, `DELETE FROM profiles WHERE project_id=$1 AND user_no=$2`, t.p, from); err != nil {
		return err
	}
	if _, err := t.q.ExecContext(t.ctx, `DELETE FROM identifier_conflicts WHERE project_id=$1 AND user_no=$2`, t.p, from); err != nil {
		return err
	}
	_, err = t.q.ExecContext(t.ctx, `UPDATE ids SET reason=$3, at_ms=$4, linked_to=$5 WHERE project_id=$1 AND distinct_id=$2`, t.p, first, uint8(l.Reason), l.At.UnixMilli(), l.To)
	return err
}

func (t *tx) nextSeq() uint64 {
	t.seq++
	return t.seq
}

// Profiles implements ledger.Tx.
func (t *tx) Profiles(nos []uint64) (map[uint64]ledger.Profile, error) {
	out := make(map[uint64]ledger.Profile, len(nos))
	err := in(t.ctx, t.q, t.p, `SELECT user_no, props, updated_ms FROM profiles WHERE project_id=$1 AND user_no IN (%s)`, nos, func(r *sql.Rows) error {
		var p ledger.Profile
		var at int64
		err := r.Scan(&p.UserNo, &p.Props, &at)
		p.Updated = time.UnixMilli(at).UTC()
		out[p.UserNo] = p
		return err
	})
	return out, err
}

// PutProfiles implements ledger.Tx.
func (t *tx) PutProfiles(list []ledger.Profile) error {
	args := make([]any, 0, 4*len(list))
	nos := make([]uint64, 0, len(list))
	for _, p := range list {
		args = append(args, t.p, p.UserNo, p.Props, p.Updated.UnixMilli())
		nos = append(nos, p.UserNo)
	}
	if err := t.insert(`INSERT INTO profiles (project_id, user_no, props, updated_ms) VALUES `, ` ON CONFLICT (project_id, user_no) DO UPDATE SET props=excluded.props, updated_ms=excluded.updated_ms`, 4, args); err != nil {
		return err
	}
	return t.touch(nos)
}

// DeleteProfiles implements ledger.Tx.
func (t *tx) DeleteProfiles(nos []uint64) error {
	for _, no := range nos {
		if _, err := t.q.ExecContext(t.ctx, `DELETE FROM profiles WHERE project_id=$1 AND user_no=$2`, t.p, no); err != nil {
			return err
		}
		if _, err := t.q.ExecContext(t.ctx, `DELETE FROM identifier_conflicts WHERE project_id=$1 AND user_no=$2`, t.p, no); err != nil {
			return err
		}
	}
	return t.touch(nos)
}

func (t *tx) touch(nos []uint64) (err error) {
	if len(nos) == 0 {
		return nil
	}
	stmt, err := t.q.PrepareContext(t.ctx, `UPDATE users SET seq=$3 WHERE project_id=$1 AND user_no=$2`)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stmt.Close()) }()
	for _, no := range nos {
		if _, err := stmt.ExecContext(t.ctx, t.p, no, t.nextSeq()); err != nil {
			return err
		}
	}
	return nil
}

// SetConflict implements ledger.Tx.
func (t *tx) SetConflict(no uint64, property, value string) (err error) {
	if value == "" {
		_, err = t.q.ExecContext(t.ctx, `DELETE FROM identifier_conflicts WHERE project_id=$1 AND user_no=$2 AND property=$3`, t.p, no, property)
		return err
	}
	_, err = t.q.ExecContext(t.ctx, `INSERT INTO identifier_conflicts (project_id, user_no, property, value) VALUES ($1,$2,$3,$4)
		ON CONFLICT (project_id, user_no, property) DO UPDATE SET value=excluded.value`, t.p, no, property, value)
	return err
}

// Waiting implements ledger.Tx.
func (t *tx) Waiting(value string) (out []ledger.Waiting, err error) {
	const query = `SELECT user_no, property FROM identifier_conflicts WHERE project_id=$1 AND value=$2 AND value<>'' ORDER BY user_no, property`
	err = each(t.ctx, t.q, query, []any{t.p, value}, func(r *sql.Rows) error {
		var w ledger.Waiting
		err := r.Scan(&w.UserNo, &w.Property)
		out = append(out, w)
		return err
	})
	return out, err
}

// Warn implements ledger.Tx.
func (t *tx) Warn(kind string, at time.Time) error {
	_, err := t.q.ExecContext(t.ctx, `INSERT INTO warnings (project_id, kind, count, first_ms, last_ms) VALUES ($1,$2,1,$3,$3)
		ON CONFLICT (project_id, kind) DO UPDATE SET count=warnings.count+1, last_ms=excluded.last_ms`, t.p, kind, at.UnixMilli())
	return err
}

// Group implements ledger.Tx.
func (t *tx) Group(key, id string) (*ledger.Group, error) {
	return selectGroup(t.ctx, t.q, t.p, key, id)
}

// PutGroup implements ledger.Tx.
func (t *tx) PutGroup(key, id string, props []byte, at time.Time) error {
	if props == nil {
		_, err := t.q.ExecContext(t.ctx, `DELETE FROM group_profiles WHERE project_id=$1 AND group_key=$2 AND group_id=$3`, t.p, key, id)
		return err
	}
	_, err := t.q.ExecContext(t.ctx, `INSERT INTO group_profiles (project_id, group_key, group_id, props, updated_ms) VALUES ($1,$2,$3,$4,$5)
		ON CONFLICT (project_id, group_key, group_id) DO UPDATE SET props=excluded.props, updated_ms=excluded.updated_ms`, t.p, key, id, props, at.UnixMilli())
	return err
}
