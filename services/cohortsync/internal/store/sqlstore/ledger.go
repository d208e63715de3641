package sqlstore

import (
	"context"
	"database/sql"
	"errors"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

	"github.com/cohortbridge/cohortbridge/platform/fault"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// LedgerMembers implements store.Ledgers.
func (s *Store) LedgerMembers(ctx context.Context, sync int64) (*roaring64.Bitmap, error) {
	rows, err := s.db.Read().QueryContext(ctx, `SELECT members FROM ledger_members WHERE sync_id = $1 ORDER BY block`, sync)
	sets, err := collect(rows, err, func(r scanner) (*roaring64.Bitmap, error) {
		var b []byte
		if err := r.Scan(&b); err != nil {
			return nil, err
		}
		return ledger.UnmarshalSet(b)
	})
	if err != nil {
		return nil, err
	}
	return roaring64.FastOr(sets...), nil
}

// LedgerBlocks implements store.Ledgers.
func (s *Store) LedgerBlocks(ctx context.Context, sync int64) ([]uint64, error) {
	rows, err := s.db.Read().QueryContext(ctx, `SELECT block FROM ledger_members WHERE sync_id = $1 ORDER BY block`, sync)
	return collect(rows, err, func(r scanner) (uint64, error) {
		var n int64
		err := r.Scan(&n)
		return uint64(n), err
	})
}

const (
	kindBase  = 0
	kindDelta = 1
)

// LedgerBlock implements store.Ledgers.
func (s *Store) LedgerBlock(ctx context.Context, sync int64, no uint64) (ledger.Block, error) {
	b := ledger.Block{No: no}
	err := s.db.ReadTx(ctx, func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `SELECT -1, members FROM ledger_members WHERE sync_id = $1 AND block = $2
			UNION ALL SELECT kind, data FROM ledger_details WHERE sync_id = $1 AND block = $2`, sync, int64(no))
		type part struct {
			kind int
			data []byte
		}
		parts, err := collect(rows, err, func(r scanner) (p part, err error) { return p, r.Scan(&p.kind, &p.data) })
		for _, p := range parts {
			switch p.kind {
			case -1:
				b.Members = p.data
			case kindBase:
				b.Base = p.data
			case kindDelta:
				b.Delta = p.data
			}
		}
		return err
	})
	return b, err
}

// SaveBlocks implements store.Ledgers.
func (s *Store) SaveBlocks(ctx context.Context, l store.Lease, sync int64, blocks []ledger.Block, rewritten []bool) error {
	return s.leased(ctx, l, func(tx *sql.Tx) error {
		for i, b := range blocks {
			no := int64(b.No)
			set, err := ledger.UnmarshalSet(b.Members)
			if err != nil {
				return err
			}
			if set.IsEmpty() {
				for _, q := range []string{`DELETE FROM ledger_members WHERE sync_id = $1 AND block = $2`, `DELETE FROM ledger_details WHERE sync_id = $1 AND block = $2`} {
					if _, err := tx.ExecContext(ctx, q, sync, no); err != nil {
						return err
					}
				}
				continue
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO ledger_members (sync_id, block, members) VALUES ($1, $2, $3) ON CONFLICT (sync_id, block) DO UPDATE SET members = excluded.members`, sync, no, b.Members); err != nil {
				return err
			}
			if rewritten[i] {
				if err := putDetail(ctx, tx, sync, no, kindBase, b.Base); err != nil {
					return err
				}
			}
			if err := putDetail(ctx, tx, sync, no, kindDelta, b.Delta); err != nil {
				return err
			}
		}
		return nil
	})
}

func putDetail(ctx context.Context, tx *sql.Tx, sync, block int64, kind int, data []byte) error {
	if len(data) == 0 {
		_, err := tx.ExecContext(ctx, `DELETE FROM ledger_details WHERE sync_id = $1 AND block = $2 AND kind = $3`, sync, block, kind)
		return err
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO ledger_details (sync_id, block, kind, data) VALUES ($1, $2, $3, $4) ON CONFLICT (sync_id, block, kind) DO UPDATE SET data = excluded.data`, sync, block, kind, data)
	return err
}

// LastWriter implements store.Ledgers.
func (s *Store) LastWriter(ctx context.Context, segment string) (int64, error) {
	return lastWriter(s.db.Read().QueryRowContext(ctx, lastWriterQuery, segment))
}

const lastWriterQuery = `SELECT sync_id FROM segments WHERE key = $1`

func lastWriter(r scanner) (sync int64, _ error) {
	err := r.Scan(&sync)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, nil
	}
	return sync, err
}

// setLastWriter makes a run's sync its segment's last writer, and that of no other.
func setLastWriter(ctx context.Context, tx *sql.Tx, segment string, sync int64, full bool) error {
	last, err := lastWriter(tx.QueryRowContext(ctx, lastWriterQuery, segment))
	switch {
	case err != nil || last == sync:
		return err
	case !full:
		return fault.New(fault.Conflict, "SEGMENT_CHANGED", "another sync wrote to the segment")
	}
	if _, err := tx.ExecContext(ctx, `DELETE FROM segments WHERE key = $1 OR sync_id = $2`, segment, sync); err != nil {
		return err
	}
	_, err = tx.ExecContext(ctx, `INSERT INTO segments (key, sync_id) VALUES ($1, $2)`, segment, sync)
	return err
}

// Orphans implements store.Ledgers.
func (s *Store) Orphans(ctx context.Context, sync int64) ([]ledger.Entry, error) {
	rows, err := s.db.Read().QueryContext(ctx, `SELECT user_no, identifier FROM ledger_orphans WHERE sync_id = $1 ORDER BY user_no, identifier`, sync)
	return collect(rows, err, func(r scanner) (e ledger.Entry, err error) {
		var u int64
		err = r.Scan(&u, &e.Identifier)
		e.User = uint64(u)
		return e, err
	})
}
