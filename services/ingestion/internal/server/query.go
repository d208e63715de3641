package server

import (
	"cmp"
	"context"
	"slices"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/auth"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/profile"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/query"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/where"
)

const (
	// queryPageSize is the greatest page, and the default.
	queryPageSize = 1000
	// scanChunk is how many profiles are read at a time.
	scanChunk = 1000
	// maxQueryMessage is about how many bytes of profiles one message carries.
	maxQueryMessage = 1 << 20
)

// QueryProfiles selects profiles, or reads a further page of a selection.
func (s *Data) QueryProfiles(req *ingestionv1.QueryProfilesRequest, stream grpc.ServerStreamingServer[ingestionv1.QueryProfilesResponse]) error {
	id, err := projectID(req.GetParent())
	if err != nil {
		return err
	}
	ctx := stream.Context()
	owner := query.Owner{Project: id}
	if p := auth.FromContext(ctx); p != nil {
		owner.Caller = p.Name
	}
	session, page := req.GetSessionId(), int(req.GetPage())
	var sel *query.Selection
	switch {
	case session != "":
		if sel, err = s.Selections.Get(owner, session); err != nil {
			return err
		}
		if n := int(req.GetPageSize()); n != 0 && n != sel.PageSize {
			return fault.Field("page_size", "must be that of the first page, %d", sel.PageSize)
		}
	case page > 0:
		return fault.Field("page", "beyond 0 needs the session_id of page 0")
	default:
		if sel, err = s.selectProfiles(ctx, id, req); err != nil {
			return err
		}
		session = s.Selections.Put(owner, sel)
	}
	head := &ingestionv1.ProfilePage{SessionId: session, Page: req.GetPage(), PageSize: int32(sel.PageSize), Total: int64(sel.Total()), ComputeTime: timestamppb.New(sel.Made)} //nolint:gosec // at most 1000
	if err := stream.Send(&ingestionv1.QueryProfilesResponse{Page: head}); err != nil {
		return err
	}
	out := &pageSender{send: stream.Send, only: req.GetOutputProperties()}
	from, to := sel.Page(page)
	if sel.GroupKey != "" {
		err = s.sendGroups(ctx, id, sel.GroupKey, sel.Groups[from:to], out)
	} else {
		err = s.sendUsers(ctx, id, sel.Users[from:to], out)
	}
	if err != nil {
		return err
	}
	return out.flush()
}

// selectProfiles makes the selection of a query.
func (s *Data) selectProfiles(ctx context.Context, project int64, req *ingestionv1.QueryProfilesRequest) (*query.Selection, error) {
	expr, err := expression(req.GetWhere(), where.Properties|where.User)
	if err != nil {
		return nil, err
	}
	sel := &query.Selection{GroupKey: req.GetGroupKey(), PageSize: resource.PageSize(req.GetPageSize(), queryPageSize, queryPageSize), Made: s.Now()}
	if sel.GroupKey != "" {
		if req.GetUsers() != nil {
			return nil, fault.Field("users", "does not go with group_key: a cohort has users")
		}
		sel.Groups, err = s.selectGroups(ctx, project, sel.GroupKey, req.GetDistinctIds(), expr)
		return sel, err
	}
	if req.GetIncludeAllUsers() && req.GetUsers() == nil {
		return nil, fault.Field("include_all_users", "only goes with users")
	}
	sel.Users, err = s.selectUsers(ctx, project, req, expr)
	return sel, err
}

// matches says whether a profile is wanted; profiles are JSON as stored.
func matches(expr *where.Expr, id string, props []byte) (bool, error) {
	if expr == nil {
		return true, nil
	}
	row := &profileRow{id: id, json: props}
	ok := expr.Match(row)
	return ok, row.err
}

// profileRow is a profile as an expression sees it.
type profileRow struct {
	id     string
	json   []byte
	parsed profile.Properties
	err    error
}

// Property implements where.Row.
func (r *profileRow) Property(_ where.Scope, name string) where.Value {
	if name == "$distinct_id" || name == "distinct_id" {
		return where.Text(r.id)
	}
	if r.parsed == nil {
		r.parsed, r.err = profile.Parse(r.json)
	}
	return where.JSON(r.parsed[name])
}

// selectUsers returns the wanted users by distinct id.
func (s *Data) selectUsers(ctx context.Context, project int64, req *ingestionv1.QueryProfilesRequest, expr *where.Expr) ([]uint64, error) {
	type hit struct {
		no uint64
		id string
	}
	var hits []hit
	take := func(rows []ledger.Member, all bool) error {
		for i := range rows {
			m := &rows[i]
			if m.Props == nil && !all {
				continue
			}
			ok, err := matches(expr, m.DistinctID, m.Props)
			if err != nil {
				return err
			}
			if ok {
				hits = append(hits, hit{m.UserNo, m.DistinctID})
			}
		}
		return nil
	}
	only, err := s.restriction(ctx, project, req)
	if err != nil {
		return nil, err
	}
	if only == nil {
		err = s.eachProfile(ctx, project, func(rows []ledger.Member) error { return take(rows, false) })
	} else {
		err = eachMember(ctx, s.Ledger, project, only, func(rows []ledger.Member) error { return take(rows, req.GetIncludeAllUsers()) })
	}
	if err != nil {
		return nil, err
	}
	slices.SortFunc(hits, func(a, b hit) int { return cmp.Compare(a.id, b.id) })
	out := make([]uint64, len(hits))
	for i, h := range hits {
		out[i] = h.no
	}
	return out, nil
}

// restriction is the users a query is limited to, nil for all.
func (s *Data) restriction(ctx context.Context, project int64, req *ingestionv1.QueryProfilesRequest) (*roaring64.Bitmap, error) {
	var only *roaring64.Bitmap
	if req.GetUsers() != nil {
		var err error
		if only, err = readUsers("users.roaring", req.GetUsers().GetRoaring()); err != nil {
			return nil, err
		}
		// A few bytes can stand for more users than could ever be read. Users who were
		// merged since the set was made are in it still.
		st, err := s.Ledger.State(ctx, project)
		if err != nil {
			return nil, err
		}
		if only.GetCardinality() > 2*uint64(st.Users)+scanChunk { //nolint:gosec // a count
			return nil, fault.Field("users.roaring", "has more users than the project")
		}
	}
	if len(req.GetDistinctIds()) == 0 {
		return only, nil
	}
	named := roaring64.New()
	for ids := range slices.Chunk(req.GetDistinctIds(), scanChunk) {
		found, err := s.Ledger.IDs(ctx, project, ids)
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			named.Add(f.Canonical)
		}
	}
	if only != nil {
		named.And(only)
	}
	return named, nil
}

func (s *Data) eachProfile(ctx context.Context, project int64, fn func([]ledger.Member) error) error {
	for after := uint64(0); ; {
		rows, err := s.Ledger.Profiles(ctx, project, after, scanChunk)
		if err != nil || len(rows) == 0 {
			return err
		}
		if err := fn(rows); err != nil {
			return err
		}
		after = rows[len(rows)-1].UserNo
	}
}

// selectGroups returns the wanted groups' ids in order.
func (s *Data) selectGroups(ctx context.Context, project int64, key string, ids []string, expr *where.Expr) (out []string, err error) {
	named := map[string]bool{}
	for _, id := range ids {
		named[id] = true
	}
	for last := ""; ; {
		list, err := s.Ledger.Groups(ctx, project, key, key, last, scanChunk)
		if err != nil || len(list) == 0 {
			return out, err
		}
		for i := range list {
			g := &list[i]
			if len(named) > 0 && !named[g.ID] {
				continue
			}
			ok, err := matches(expr, g.ID, g.Props)
			if err != nil {
				return nil, err
			}
			if ok {
				out = append(out, g.ID)
			}
		}
		last = list[len(list)-1].ID
	}
}

// sendUsers sends users' profiles as they are now. A user who was merged away or
// has no profile is sent without properties: a page that is short would pass for
// the last one.
func (s *Data) sendUsers(ctx context.Context, project int64, nos []uint64, out *pageSender) error {
	names, err := s.Ledger.Names(ctx, project, nos)
	if err != nil {
		return err
	}
	members, err := s.Ledger.Members(ctx, project, slices.Sorted(slices.Values(nos)))
	if err != nil {
		return err
	}
	props := make(map[uint64][]byte, len(members))
	for i := range members {
		props[members[i].UserNo] = members[i].Props
	}
	for _, no := range nos {
		if err := out.add(names[no].Own, props[no]); err != nil {
			return err
		}
	}
	return nil
}

func (s *Data) sendGroups(ctx context.Context, project int64, key string, ids []string, out *pageSender) error {
	for _, id := range ids {
		g, err := s.Ledger.Group(ctx, project, key, id)
		if err != nil {
			return err
		}
		var props []byte
		if g != nil {
			props = g.Props
		}
		if err := out.add(id, props); err != nil {
			return err
		}
	}
	return nil
}

// pageSender sends profiles in messages of bounded size.
type pageSender struct {
	send func(*ingestionv1.QueryProfilesResponse) error
	// only are the properties that are sent; all when empty.
	only []string
	rows []*ingestionv1.QueriedProfile
	size int
}

func (p *pageSender) add(id string, props []byte) error {
	if len(p.only) > 0 {
		all, err := profile.Parse(props)
		if err != nil {
			return err
		}
		some := profile.Properties{}
		for _, name := range p.only {
			if v, ok := all[name]; ok {
				some[name] = v
			}
		}
		props = some.JSON()
	}
	if len(props) == 0 {
		props = []byte("{}")
	}
	p.rows = append(p.rows, &ingestionv1.QueriedProfile{DistinctId: id, PropertiesJson: string(props)})
	if p.size += len(id) + len(props); p.size >= maxQueryMessage {
		return p.flush()
	}
	return nil
}

func (p *pageSender) flush() error {
	if len(p.rows) == 0 {
		return nil
	}
	err := p.send(&ingestionv1.QueryProfilesResponse{Profiles: p.rows})
	p.rows, p.size = nil, 0
	return err
}
