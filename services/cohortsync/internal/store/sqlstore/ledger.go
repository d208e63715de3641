package sqlstore

import (
	"context"
	"database/sql"

	"github.com/RoaringBitmap/roaring/v2/roaring64"

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

// Kinds of stored parts. Those of details are 0 and 1 only.
const (
	kindMembers = -1
	kindBase    = 0
	kindDelta   = 1
	kindOrphans = 2
	kindBatch   = 3
)

// LedgerBlock implements store.Ledgers.
func (s *Store) LedgerBlock(ctx context.Context, sync int64, no uint64) (ledger.Block, error) {
	var b ledger.Block
	err := s.db.ReadTx(ctx, func(tx *sql.Tx) (err error) {
		b, err = readBlock(ctx, tx, no, `SELECT -1, members FROM ledger_members WHERE sync_id = $1 AND block = $2
			UNION ALL SELECT kind, data FROM ledger_details WHERE sync_id = $1 AND block = $2`, sync)
		return err
	})
	return b, err
}

// readBlock puts the parts of a block together that a query on an owner and the
// block's number gives.
func readBlock(ctx context.Context, tx *sql.Tx, no uint64, query string, owner int64) (ledger.Block, error) {
	b := ledger.Block{No: no}
	rows, err := tx.QueryContext(ctx, query, owner, int64(no))
	type part struct {
		kind int
		data []byte
	}
	parts, err := collect(rows, err, func(r scanner) (p part, err error) { return p, r.Scan(&p.kind, &p.data) })
	for _, p := range parts {
		switch p.kind {
		case kindMembers:
			b.Members = p.data
		case kindBase:
			b.Base = p.data
		case kindDelta:
			b.Delta = p.data
		}
	}
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

// Orphans implements store.Ledgers.
func (s *Store) Orphans(ctx context.Context, sync int64) ([]ledger.Entry, error) {
	rows, err := s.db.Read().QueryContext(ctx, orphansQuery, sync)
	return scanOrphans(rows, err)
}

const orphansQuery = `SELECT user_no, identifier FROM ledger_orphans WHERE sync_id = $1 ORDER BY user_no, identifier`

func scanOrphans(rows *sql.Rows, err error) ([]ledger.Entry, error) {
	return collect(rows, err, func(r scanner) (e ledger.Entry, err error) {
		var u int64
		err = r.Scan(&u, &e.Identifier)
		e.User = uint64(u)
		return e, err
	})
}
