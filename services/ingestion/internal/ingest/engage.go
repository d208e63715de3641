package ingest

import (
	"context"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/profile"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/wire"
)

func noToken(index int) *event.Failure {
	return (&profile.Update{Index: index}).Fail("$token", "missing")
}

// updates are the profile updates of a payload.
type updates struct {
	groups   bool
	list     []*profile.Update
	failures []*event.Failure
}

// read implements sink.
func (s *updates) read(dec *jsontext.Decoder, i int) error {
	u := &profile.Update{Index: i}
	f, err := profile.Decode(dec, u)
	if err != nil {
		return err
	}
	switch {
	case s.groups && u.GroupKey == "" && (f == nil || f.Field == "$distinct_id"):
		f = u.Fail("$group_key", profile.GroupPart)
	case f != nil && u.Token == "" && u.Empty() && u.DistinctID != "":
		f = noToken(i)
	case f == nil && s.groups && len(u.Append) > 0:
		// https://docs.mixpanel.com/docs/data-structure/user-profiles: groups have no $append.
		s.failures = append(s.failures, u.Fail("$append", "groups do not support it"))
		if u.Append = nil; u.Empty() {
			return nil
		}
	}
	if f != nil {
		s.failures = append(s.failures, f)
	} else {
		s.list = append(s.list, u)
	}
	return nil
}

// broken implements sink.
func (s *updates) broken(i int, _ []byte, why *flaw) {
	if n := len(s.list); n > 0 && s.list[n-1].Index == i {
		s.list = s.list[:n-1]
	}
	field := "$"
	if len(why.at) > 0 {
		field = event.Path(why.at...)
	}
	s.failures = append(dropLast(s.failures, i), (&profile.Update{Index: i}).Fail(field, why.why))
}

func (in *Ingester) profiles(ctx context.Context, r *wire.Request, payload *wire.Payload) (*wire.Response, error) {
	s := &updates{groups: r.Endpoint == wire.Groups}
	if err := each(payload, s); err != nil {
		return nil, err
	}
	failures := s.failures
	// Updates of one project stay in order; projects are independent of each other.
	var order []*project.Project
	byProject := map[*project.Project][]*profile.Update{}
	for _, u := range s.list {
		if u.Token == "" {
			failures = append(failures, noToken(u.Index))
			continue
		}
		p, err := in.Registry.ByToken(ctx, u.Token)
		if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Invalid) {
			failures = append(failures, u.Fail("$token", "no such project"))
			continue
		}
		if err != nil {
			return nil, err
		}
		if byProject[p] == nil {
			order = append(order, p)
		}
		byProject[p] = append(byProject[p], u)
	}
	applied := 0
	for _, p := range order {
		n, f, err := in.Update(ctx, p, byProject[p])
		if err != nil {
			return nil, err
		}
		applied += n
		failures = append(failures, f...)
	}
	byIndex(failures)
	return wire.Updated(&payload.Params, applied, failures), nil
}
