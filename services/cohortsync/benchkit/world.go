// Package benchkit runs cohortsync against an ingestion and a registry that
// live in memory, so that tests and benchmarks measure the sync engine and
// nothing else. It is not part of the product's binary.
package benchkit

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
)

// User is one person of the world.
type User struct {
	// DistinctID is the canonical id; empty means u<number>.
	DistinctID string
	// PartnerID is $CleverTap_user_id, Conflict that it is someone else's.
	PartnerID string
	Conflict  bool
	// Properties are the profile; nil means a name and an e-mail made from the number.
	Properties map[string]any
}

// World answers as ingestion and registry do. Leaves are sets by name: a
// behaviour leaf's first event, or a property leaf's property.
type World struct {
	ingestionv1.UnimplementedEvaluationServiceServer
	registryv1.UnimplementedCredentialServiceServer

	mu         sync.Mutex
	leaves     map[string]*roaring64.Bitmap
	identified *roaring64.Bitmap
	users      map[uint64]User
	changes    []uint64 // user by sequence-1
	connectors map[string]*registryv1.ResolveConnectorResponse
	evaluate   func() error
	cut        bool
	reports    []*registryv1.ReportConnectorStateRequest
	leafCalls  int
}

// NewWorld returns a world without anyone in it.
func NewWorld() *World {
	return &World{leaves: map[string]*roaring64.Bitmap{}, identified: roaring64.New(), users: map[uint64]User{}, connectors: map[string]*registryv1.ResolveConnectorResponse{}}
}

// Register adds the services to a server.
func (w *World) Register(r grpc.ServiceRegistrar) {
	ingestionv1.RegisterEvaluationServiceServer(r, w)
	registryv1.RegisterCredentialServiceServer(r, w)
}

// SetLeaf sets who a leaf selects.
func (w *World) SetLeaf(name string, users ...uint64) {
	w.SetLeafSet(name, roaring64.BitmapOf(users...))
}

// SetLeafSet sets who a leaf selects.
func (w *World) SetLeafSet(name string, users *roaring64.Bitmap) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leaves[name] = users
}

// Leaf is a copy of who a leaf selects.
func (w *World) Leaf(name string) *roaring64.Bitmap {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.leaves[name] == nil {
		return roaring64.New()
	}
	return w.leaves[name].Clone()
}

// Identify gives users profiles.
func (w *World) Identify(users *roaring64.Bitmap) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.identified.Or(users)
}

// SetUser gives a user a profile and notes the change.
func (w *World) SetUser(no uint64, u User) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.identified.Add(no)
	w.users[no] = u
	w.changes = append(w.changes, no)
}

// Forget takes a user's profile away and notes the change; the user's id is still known.
func (w *World) Forget(no uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.identified.Remove(no)
	delete(w.users, no)
	w.changes = append(w.changes, no)
}

// FailEvaluations makes evaluations end with what fail returns; nil means well.
func (w *World) FailEvaluations(fail func() error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.evaluate = fail
}

// CutEvaluations makes evaluations end without their last message.
func (w *World) CutEvaluations(cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = cut
}

// SetConnector adds a connector.
func (w *World) SetConnector(project, id int64, ct *registryv1.CleverTap, passcode string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	name := fmt.Sprintf("projects/%d/connectors/%d", project, id)
	w.connectors[name] = &registryv1.ResolveConnectorResponse{Passcode: passcode, Connector: &registryv1.Connector{Name: name, Destination: &registryv1.Connector_Clevertap{Clevertap: ct}}}
}

// DropConnector removes a connector.
func (w *World) DropConnector(project, id int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.connectors, fmt.Sprintf("projects/%d/connectors/%d", project, id))
}

// Reports are the connector states that were reported.
func (w *World) Reports() []*registryv1.ReportConnectorStateRequest {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]*registryv1.ReportConnectorStateRequest(nil), w.reports...)
}

// LeavesAsked counts leaves that were evaluated.
func (w *World) LeavesAsked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leafCalls
}

// Identifier is how the engine must know a user at the destination.
func (w *World) Identifier(no uint64) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	u := w.users[no]
	if u.PartnerID != "" && !u.Conflict {
		return u.PartnerID
	}
	return distinctID(no, u)
}

func distinctID(no uint64, u User) string {
	if u.DistinctID != "" {
		return u.DistinctID
	}
	return fmt.Sprintf("u%d", no)
}

func wire(s *roaring64.Bitmap) (*ingestionv1.UserSet, error) {
	var b bytes.Buffer
	if _, err := s.WriteTo(&b); err != nil {
		return nil, err
	}
	return &ingestionv1.UserSet{Roaring: b.Bytes(), Count: s.GetCardinality()}, nil
}

// EvaluateLeaves implements ingestionv1.EvaluationServiceServer.
func (w *World) EvaluateLeaves(req *ingestionv1.EvaluateLeavesRequest, st grpc.ServerStreamingServer[ingestionv1.EvaluateLeavesResponse]) error {
	w.mu.Lock()
	fail, cut, seq := w.evaluate, w.cut, uint64(len(w.changes))
	w.leafCalls += len(req.GetLeaves())
	sets := make([]*roaring64.Bitmap, len(req.GetLeaves()))
	for i, l := range req.GetLeaves() {
		name := l.GetProperty().GetFilter().GetProperty()
		if b := l.GetBehavior(); b != nil {
			name = b.GetEvents()[0]
		}
		sets[i] = roaring64.New()
		switch {
		case l.GetUsers() != nil:
			if err := sets[i].UnmarshalBinary(l.GetUsers().GetRoaring()); err != nil {
				w.mu.Unlock()
				return err
			}
		case w.leaves[name] != nil:
			sets[i] = w.leaves[name].Clone()
		}
	}
	identified := w.identified.Clone()
	w.mu.Unlock()
	if fail != nil {
		if err := fail(); err != nil {
			return err
		}
	}
	for i, s := range sets {
		u, err := wire(s)
		if err != nil {
			return err
		}
		if err := st.Send(&ingestionv1.EvaluateLeavesResponse{Answer: &ingestionv1.EvaluateLeavesResponse_Leaf{Leaf: &ingestionv1.LeafResult{Index: int32(i), Users: u, Duration: durationpb.New(1)}}}); err != nil {
			return err
		}
	}
	u, err := wire(identified)
	if err != nil {
		return err
	}
	if err := st.Send(&ingestionv1.EvaluateLeavesResponse{Answer: &ingestionv1.EvaluateLeavesResponse_Identified{Identified: u}}); err != nil || cut {
		return err
	}
	return st.Send(&ingestionv1.EvaluateLeavesResponse{Answer: &ingestionv1.EvaluateLeavesResponse_Watermark{Watermark: &ingestionv1.Watermark{EventTime: timestamppb.Now(), ProfileSeq: seq}}})
}

// AssignUsers implements ingestionv1.EvaluationServiceServer: id u7 is user 7's, and
// only such ids can be anybody's.
func (w *World) AssignUsers(_ context.Context, req *ingestionv1.AssignUsersRequest) (*ingestionv1.AssignUsersResponse, error) {
	out := &ingestionv1.AssignUsersResponse{}
	s := roaring64.New()
	for i, id := range req.GetDistinctIds() {
		no, err := strconv.ParseUint(strings.TrimPrefix(id, "u"), 10, 64)
		if err != nil || id == strconv.FormatUint(no, 10) {
			out.Refused = append(out.Refused, int32(i))
			continue
		}
		s.Add(no)
	}
	var err error
	out.Users, err = wire(s)
	return out, err
}

// ListChangedUsers implements ingestionv1.EvaluationServiceServer.
func (w *World) ListChangedUsers(_ context.Context, req *ingestionv1.ListChangedUsersRequest) (*ingestionv1.ListChangedUsersResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := roaring64.New()
	for i := req.GetSinceSeq(); i < min(req.GetUntilSeq(), uint64(len(w.changes))); i++ {
		s.Add(w.changes[i])
	}
	u, err := wire(s)
	return &ingestionv1.ListChangedUsersResponse{Users: u}, err
}

// ResolveMembers implements ingestionv1.EvaluationServiceServer.
func (w *World) ResolveMembers(req *ingestionv1.ResolveMembersRequest, st grpc.ServerStreamingServer[ingestionv1.ResolveMembersResponse]) error {
	s := roaring64.New()
	if err := s.UnmarshalBinary(req.GetRoaring()); err != nil {
		return err
	}
	resp := &ingestionv1.ResolveMembersResponse{}
	for it := s.Iterator(); it.HasNext(); {
		m, err := w.member(it.Next(), req.GetColumns())
		if err != nil {
			return err
		}
		if resp.Members = append(resp.Members, m); len(resp.Members) == 1000 {
			if err := st.Send(resp); err != nil {
				return err
			}
			resp = &ingestionv1.ResolveMembersResponse{}
		}
	}
	if len(resp.GetMembers()) == 0 {
		return nil
	}
	return st.Send(resp)
}

func (w *World) member(no uint64, columns []string) (*ingestionv1.Member, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	u, own := w.users[no]
	m := &ingestionv1.Member{UserNo: no, DistinctId: distinctID(no, u), PartnerId: u.PartnerID, PartnerIdConflict: u.Conflict, Identified: w.identified.Contains(no), Columns: make([][]byte, len(columns))}
	if u.Conflict {
		m.PartnerId = ""
	}
	for i, c := range columns {
		switch {
		case own && u.Properties != nil:
			if v, ok := u.Properties[c]; ok {
				b, err := json.Marshal(v)
				if err != nil {
					return nil, err
				}
				m.Columns[i] = b
			}
		case c == "$email":
			m.Columns[i] = fmt.Appendf(nil, `"user%d@example.org"`, no)
		case c == "$first_name":
			m.Columns[i] = fmt.Appendf(nil, `"Name%d"`, no%1000)
		}
	}
	return m, nil
}

// ResolveConnector implements registryv1.CredentialServiceServer.
func (w *World) ResolveConnector(_ context.Context, req *registryv1.ResolveConnectorRequest) (*registryv1.ResolveConnectorResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	c := w.connectors[req.GetName()]
	if c == nil {
		return nil, status.Error(codes.NotFound, "no such connector")
	}
	return proto.Clone(c).(*registryv1.ResolveConnectorResponse), nil
}

// ReportConnectorState implements registryv1.CredentialServiceServer.
func (w *World) ReportConnectorState(_ context.Context, req *registryv1.ReportConnectorStateRequest) (*registryv1.ReportConnectorStateResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reports = append(w.reports, req)
	if c := w.connectors[req.GetName()]; c != nil {
		c.GetConnector().State = req.GetState()
	}
	return &registryv1.ReportConnectorStateResponse{}, nil
}

// Users is a copy of those that were set by name.
func (w *World) Users() map[uint64]User {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.users)
}
