package server

import (
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/event"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/feed"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/identity"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ingest"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/leaf"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/profile"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/project"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

// Evaluation serves EvaluationService.
type Evaluation struct {
	ingestionv1.UnimplementedEvaluationServiceServer
	// Ledger, Warehouse and Feeder are what is read.
	Ledger    ledger.Ledger
	Warehouse warehouse.Warehouse
	Feeder    *feed.Feeder
	// Registry and Resolver give ids that nobody has a user; Ingester writes profiles.
	Registry project.Registry
	Resolver *identity.Resolver
	Ingester *ingest.Ingester
}

// EvaluateLeaves answers leaves on one snapshot.
func (s *Evaluation) EvaluateLeaves(req *ingestionv1.EvaluateLeavesRequest, stream grpc.ServerStreamingServer[ingestionv1.EvaluateLeavesResponse]) error {
	id, err := projectID(req.GetParent())
	if err != nil {
		return err
	}
	if req.GetAsOf() == nil {
		return fault.Field("as_of", "required")
	}
	asOf := req.GetAsOf().AsTime()
	leaves := make([]leaf.Leaf, len(req.GetLeaves()))
	ctx := stream.Context()
	for i, l := range req.GetLeaves() {
		path := "leaves[" + strconv.Itoa(i) + "]"
		if ids := l.GetIds(); ids != nil {
			leaves[i].Users, err = s.owners(ctx, id, ids.GetDistinctIds())
		} else {
			leaves[i], err = leafOf(l, asOf, path)
		}
		if err != nil {
			return err
		}
	}
	var ev *warehouse.Evaluation
	if err := s.Feeder.Read(ctx, id, func() error {
		ev, err = s.Warehouse.Evaluate(ctx, id, leaves, asOf)
		return err
	}); err != nil {
		return err
	}
	for i, l := range ev.Leaves {
		set, err := userSet(l.Users)
		if err != nil {
			return err
		}
		r := &ingestionv1.LeafResult{Index: int32(i), Users: set, Duration: durationpb.New(l.Took)} //nolint:gosec // at most 1000
		if err := stream.Send(&ingestionv1.EvaluateLeavesResponse{Answer: &ingestionv1.EvaluateLeavesResponse_Leaf{Leaf: r}}); err != nil {
			return err
		}
	}
	set, err := userSet(ev.Identified)
	if err != nil {
		return err
	}
	if err := stream.Send(&ingestionv1.EvaluateLeavesResponse{Answer: &ingestionv1.EvaluateLeavesResponse_Identified{Identified: set}}); err != nil {
		return err
	}
	w := &ingestionv1.Watermark{ProfileSeq: ev.Seq}
	if ev.NewestMS > 0 {
		w.EventTime = timestamppb.New(time.UnixMilli(ev.NewestMS))
	}
	return stream.Send(&ingestionv1.EvaluateLeavesResponse{Answer: &ingestionv1.EvaluateLeavesResponse_Watermark{Watermark: w}})
}

// owners are the users to whom ids belong.
func (s *Evaluation) owners(ctx context.Context, projectID int64, ids []string) (*roaring64.Bitmap, error) {
	st, err := s.Ledger.State(ctx, projectID)
	if err != nil {
		return nil, err
	}
	out := roaring64.New()
	found, err := s.Ledger.IDs(ctx, projectID, ids)
	if err != nil {
		return nil, err
	}
	// An alias may be such an id itself; one that is not may be the id of events.
	var unknown []string
	for _, id := range ids {
		if o, ok := found[id]; ok {
			out.Add(o.Canonical)
		} else {
			unknown = append(unknown, id)
		}
	}
	if st.System != project.Original || len(unknown) == 0 {
		return out, nil
	}
	if found, err = s.Ledger.IDs(ctx, projectID, arrivals(unknown, st.System)); err != nil {
		return nil, err
	}
	for _, o := range found {
		out.Add(o.Canonical)
	}
	return out, nil
}

// arrivals are the ids that events with those ids would arrive under.
func arrivals(ids []string, system project.IdentitySystem) []string {
	if system != project.Original {
		return ids
	}
	out := make([]string, len(ids))
	for i, id := range ids {
		out[i] = event.OriginalID(id)
	}
	return out
}

// AssignUsers returns users by ids, new ones for ids that nobody has.
func (s *Evaluation) AssignUsers(ctx context.Context, req *ingestionv1.AssignUsersRequest) (*ingestionv1.AssignUsersResponse, error) {
	id, err := projectID(req.GetParent())
	if err != nil {
		return nil, err
	}
	p, err := s.Registry.ByID(ctx, id)
	if err != nil {
		return nil, err
	}
	system, err := s.Resolver.System(ctx, p)
	if err != nil {
		return nil, err
	}
	out := &ingestionv1.AssignUsersResponse{}
	var ids []string
	for i, v := range req.GetDistinctIds() {
		if !identity.PossibleID(v) || len(v) > event.MaxText {
			out.Refused = append(out.Refused, int32(i)) //nolint:gosec // at most 10,000
			continue
		}
		ids = append(ids, v)
	}
	users := roaring64.New()
	if len(ids) > 0 {
		ids = arrivals(ids, system)
		err = s.Resolver.Update(ctx, id, system, func(_ ledger.Tx, session *identity.Session) error {
			if err := session.Create(ids); err != nil {
				return err
			}
			for _, v := range ids {
				row, err := session.Get(v)
				if err != nil {
					return err
				}
				users.Add(row.Canonical)
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	if err := s.setProperties(ctx, p, req, out.GetRefused()); err != nil {
		return nil, err
	}
	out.Users, err = userSet(users)
	return out, err
}

// setProperties writes what came with ids to their users' profiles.
func (s *Evaluation) setProperties(ctx context.Context, p *project.Project, req *ingestionv1.AssignUsersRequest, refused []int32) error {
	if len(req.GetProperties()) == 0 {
		return nil
	}
	if len(req.GetProperties()) != len(req.GetDistinctIds()) {
		return fault.Field("properties", "needs one object for each of distinct_ids")
	}
	nobody := map[int]bool{}
	for _, i := range refused {
		nobody[int(i)] = true
	}
	var updates []*profile.Update
	for i, raw := range req.GetProperties() {
		if len(raw) == 0 || nobody[i] {
			continue
		}
		b, err := json.Marshal(map[string]any{"$distinct_id": req.GetDistinctIds()[i], "$ignore_time": true, "$set": json.RawMessage(raw)})
		if err != nil {
			return fault.Field("properties["+strconv.Itoa(i)+"]", "must be a JSON object")
		}
		if u, f := profile.DecodeOne(b, i); f == nil {
			updates = append(updates, u)
		}
	}
	_, _, err := s.Ingester.Update(ctx, p, updates)
	return err
}

func userSet(bm *roaring64.Bitmap) (*ingestionv1.UserSet, error) {
	b, err := bm.ToBytes()
	return &ingestionv1.UserSet{Roaring: b, Count: bm.GetCardinality()}, err
}

// ListChangedUsers returns the users changed after since_seq. Users whose newest
// change lies beyond until_seq are included: the ledger keeps the newest change
// only, and a caller must not miss that they changed before as well.
func (s *Evaluation) ListChangedUsers(ctx context.Context, req *ingestionv1.ListChangedUsersRequest) (*ingestionv1.ListChangedUsersResponse, error) {
	id, err := projectID(req.GetParent())
	if err != nil {
		return nil, err
	}
	bm := roaring64.New()
	if req.GetUntilSeq() > req.GetSinceSeq() {
		nos, err := s.Ledger.ChangedUsers(ctx, id, req.GetSinceSeq())
		if err != nil {
			return nil, err
		}
		bm.AddMany(nos)
	}
	set, err := userSet(bm)
	return &ingestionv1.ListChangedUsersResponse{Users: set}, err
}

// memberChunk is how many members one message carries.
const memberChunk = 1000

// ResolveMembers streams ids and columns of users in ascending order.
func (s *Evaluation) ResolveMembers(req *ingestionv1.ResolveMembersRequest, stream grpc.ServerStreamingServer[ingestionv1.ResolveMembersResponse]) error {
	id, err := projectID(req.GetParent())
	if err != nil {
		return err
	}
	bm, err := readUsers("roaring", req.GetRoaring())
	if err != nil {
		return err
	}
	partner := req.GetPartnerProperty()
	if partner == "" {
		partner = "$CleverTap_user_id"
	}
	return eachMember(stream.Context(), s.Ledger, id, bm, func(rows []ledger.Member) (err error) {
		out := &ingestionv1.ResolveMembersResponse{}
		if out.Members, err = s.members(stream.Context(), id, rows, partner, req.GetColumns()); err != nil {
			return err
		}
		return stream.Send(out)
	})
}

// eachMember reads users in ascending order, memberChunk at a time.
func eachMember(ctx context.Context, l ledger.Ledger, project int64, users *roaring64.Bitmap, fn func([]ledger.Member) error) error {
	nos := make([]uint64, memberChunk)
	it := users.ManyIterator()
	for n := it.NextMany(nos); n > 0; n = it.NextMany(nos) {
		rows, err := l.Members(ctx, project, nos[:n])
		if err != nil {
			return err
		}
		if err := fn(rows); err != nil {
			return err
		}
	}
	return nil
}

// members resolves partner ids. A distinct id belongs to one user, and only its
// owner is delivered under it: no two users share an identifier, also not one that
// was the first id of a user and is an alias of another now.
func (s *Evaluation) members(ctx context.Context, projectID int64, rows []ledger.Member, partner string, columns []string) ([]*ingestionv1.Member, error) {
	props := make([]profile.Properties, len(rows))
	var values []string
	for i := range rows {
		var err error
		if props[i], err = profile.Parse(rows[i].Props); err != nil {
			return nil, err
		}
		if v, ok := props[i].ID(partner); ok && identity.PossibleID(v) {
			values = append(values, v)
		}
	}
	owners, err := s.Ledger.IDs(ctx, projectID, values)
	if err != nil {
		return nil, err
	}
	out := make([]*ingestionv1.Member, len(rows))
	for i, m := range rows {
		out[i] = &ingestionv1.Member{UserNo: m.UserNo, DistinctId: m.DistinctID, Identified: len(props[i]) > 0, Columns: make([][]byte, len(columns))}
		if v, ok := props[i].ID(partner); !ok {
			out[i].PartnerIdConflict = m.Taken
		} else {
			switch {
			case !identity.PossibleID(v):
				out[i].PartnerIdInvalid = true
			case owners[v].Canonical != m.UserNo:
				out[i].PartnerIdConflict = true
			default:
				out[i].PartnerId = v
			}
		}
		for j, c := range columns {
			out[i].Columns[j] = slices.Clip(props[i][c])
		}
	}
	return out, nil
}
