package ingest

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/identity"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/profile"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
)

// Update applies profile updates of one project in order, in one ledger
// transaction. applied counts updates that took effect at least in part; the
// failures name updates or properties that did not.
func (in *Ingester) Update(ctx context.Context, p *project.Project, updates []*profile.Update) (applied int, failures []*event.Failure, err error) {
	ctx, span := tracer.Start(ctx, "ingestion.update_profiles", trace.WithAttributes(attribute.Int("cohortbridge.updates", len(updates))))
	defer span.End()
	system, err := in.Systems.Freeze(ctx, p)
	if err != nil {
		return 0, nil, err
	}
	if system == project.Original {
		for _, u := range updates {
			u.DistinctID = event.OriginalID(u.DistinctID)
		}
	}
	err = in.Resolver.Update(ctx, p.ID, system, func(tx ledger.Tx, s *identity.Session) error {
		b := &profileBatch{tx: tx, ids: s, now: in.Now(), rows: map[uint64]*profileRow{}}
		s.ReadProfiles(b.props)
		if err := b.load(updates); err != nil {
			return err
		}
		for _, u := range updates {
			ok, f, err := b.apply(u)
			if err != nil {
				return err
			}
			if ok {
				applied++
			}
			failures = append(failures, f...)
		}
		return b.store()
	})
	if err != nil {
		if fault.CodeOf(err) == fault.Internal { // the store's: nothing was changed, and clients come back on 503
			slog.ErrorContext(ctx, "profiles not stored", "updates", len(updates), "error", err)
			err = fault.New(fault.Unavailable, "STORE_FAILED", "the profiles could not be stored; retry").Retry(time.Second).Wrap(err)
		}
		return 0, nil, err
	}
	span.SetAttributes(attribute.Int("cohortbridge.updates.applied", applied))
	return applied, failures, nil
}

// profileBatch holds the profiles a batch works on.
type profileBatch struct {
	tx   ledger.Tx
	ids  *identity.Session
	now  time.Time
	rows map[uint64]*profileRow // by canonical user
}

type profileRow struct {
	props   profile.Properties
	exists  bool // has a profile now
	stored  bool // had one when read
	changed bool
}

// load reads the ids and profiles the batch will need, in few queries.
func (b *profileBatch) load(updates []*profile.Update) error {
	var ids, create []string
	for _, u := range updates {
		if u.GroupKey != "" {
			continue
		}
		ids = append(ids, u.DistinctID)
		if u.Creates() {
			create = append(create, u.DistinctID)
		}
		for _, list := range [][]profile.Property{u.Set, u.SetOnce} {
			for _, a := range list {
				if slices.Contains(identity.PartnerProperties, a.Name) {
					if v, ok := (profile.Properties{a.Name: a.Value}).ID(a.Name); ok {
						ids = append(ids, v)
					}
				}
			}
		}
	}
	if err := b.ids.Load(ids); err != nil {
		return err
	}
	if err := b.ids.Create(create); err != nil {
		return err
	}
	var nos []uint64
	for _, id := range ids {
		row, err := b.ids.Get(id)
		if err != nil {
			return err
		}
		if row != nil && b.rows[row.Canonical] == nil {
			b.rows[row.Canonical] = &profileRow{props: profile.Properties{}}
			nos = append(nos, row.Canonical)
		}
	}
	found, err := b.tx.Profiles(nos)
	if err != nil {
		return err
	}
	for no, p := range found {
		row := b.rows[no]
		row.exists, row.stored = true, true
		if row.props, err = profile.Parse(p.Props); err != nil {
			return err
		}
	}
	return nil
}

func (b *profileBatch) row(no uint64) (*profileRow, error) {
	if r := b.rows[no]; r != nil {
		return r, nil
	}
	found, err := b.tx.Profiles([]uint64{no})
	if err != nil {
		return nil, err
	}
	r := &profileRow{props: profile.Properties{}}
	if p, ok := found[no]; ok {
		r.exists, r.stored = true, true
		if r.props, err = profile.Parse(p.Props); err != nil {
			return nil, err
		}
	}
	b.rows[no] = r
	return r, nil
}

func (b *profileBatch) apply(u *profile.Update) (applied bool, failures []*event.Failure, err error) {
	if u.GroupKey != "" {
		return b.group(u)
	}
	id, err := b.ids.Get(u.DistinctID)
	if err != nil {
		return false, nil, err
	}
	if id == nil {
		return b.without(u)
	}
	no := id.Canonical
	if u.IgnoreAlias && id.Reason != ledger.FirstSeen {
		former, err := b.tx.Former(u.DistinctID)
		switch {
		case err != nil:
			return false, nil, err
		case former != 0:
			no = former
		case u.Delete:
			return true, nil, nil // the alias itself has no profile
		}
	}
	row, err := b.row(no)
	if err != nil {
		return false, nil, err
	}
	if u.Delete {
		if row.exists {
			before := identity.PartnerIDs(row.props)
			row.props, row.exists, row.changed = profile.Properties{}, false, true
			err = b.ids.SetPartners(no, before, u.Writes)
		}
		return true, nil, err
	}
	if !row.exists && !u.Creates() {
		return b.without(u)
	}
	before := identity.PartnerIDs(row.props)
	changed, failures := u.Apply(row.props, b.now)
	if changed {
		row.exists, row.changed = len(row.props) > 0, true
	}
	if err := b.ids.SetPartners(no, before, u.Writes); err != nil {
		return false, nil, err
	}
	return changed || len(failures) == 0, failures, nil
}

// without is an update of a profile that is not there and that it does not make:
// nothing to remove from is no failure, what can't be done at all is one.
func (b *profileBatch) without(u *profile.Update) (applied bool, failures []*event.Failure, err error) {
	if !u.Delete {
		_, failures = u.Apply(profile.Properties{}, b.now)
	}
	return len(failures) == 0, failures, nil
}

func (b *profileBatch) props(no uint64) (profile.Properties, error) {
	r, err := b.row(no)
	if err != nil {
		return nil, err
	}
	return r.props, nil
}

func (b *profileBatch) store() error {
	var put []ledger.Profile
	var gone []uint64
	for no, r := range b.rows {
		switch {
		case !r.changed:
		case r.exists:
			put = append(put, ledger.Profile{UserNo: no, Props: r.props.JSON(), Updated: b.now})
		case r.stored:
			gone = append(gone, no)
		}
	}
	slices.SortFunc(put, func(x, y ledger.Profile) int { return int(int64(x.UserNo) - int64(y.UserNo)) }) //nolint:gosec // below 2^63
	slices.Sort(gone)
	if err := b.tx.PutProfiles(put); err != nil {
		return err
	}
	return b.tx.DeleteProfiles(gone)
}

// group applies an update to a group profile, which no identity rules concern.
func (b *profileBatch) group(u *profile.Update) (applied bool, failures []*event.Failure, err error) {
	if u.Delete {
		return true, nil, b.tx.PutGroup(u.GroupKey, u.GroupID, nil, b.now)
	}
	old, err := b.tx.Group(u.GroupKey, u.GroupID)
	if err != nil {
		return false, nil, err
	}
	if old == nil && !u.Creates() {
		return b.without(u)
	}
	props := profile.Properties{}
	if old != nil {
		if props, err = profile.Parse(old.Props); err != nil {
			return false, nil, err
		}
	}
	changed, failures := u.Apply(props, b.now)
	if changed {
		var stored []byte // a group without a property has no profile
		if len(props) > 0 {
			stored = props.JSON()
		}
		err = b.tx.PutGroup(u.GroupKey, u.GroupID, stored, b.now)
	}
	return changed || len(failures) == 0, failures, err
}
