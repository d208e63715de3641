package server

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/feed"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/identity"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ingest"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/query"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

// Data serves DataService.
type Data struct {
	ingestionv1.UnimplementedDataServiceServer
	// Ledger, Warehouse, Feeder and Pipeline are what is read.
	Ledger    ledger.Ledger
	Warehouse warehouse.Warehouse
	Feeder    *feed.Feeder
	Pipeline  *ingest.Pipeline
	// Selections keeps what is being paged through.
	Selections *query.Selections
	// Now is the clock.
	Now func() time.Time
}

// GetProfile returns the profile of the user that an id belongs to.
func (s *Data) GetProfile(ctx context.Context, req *ingestionv1.GetProfileRequest) (*ingestionv1.GetProfileResponse, error) {
	id, err := projectID(req.GetParent())
	if err != nil {
		return nil, err
	}
	missing := fault.New(fault.NotFound, "PROFILE_NOT_FOUND", "no profile has this distinct_id")
	ids, err := s.Ledger.IDs(ctx, id, []string{req.GetDistinctId()})
	if err != nil {
		return nil, err
	}
	row, ok := ids[req.GetDistinctId()]
	if !ok {
		return nil, missing
	}
	no := row.Canonical
	if req.GetIgnoreAlias() {
		former, err := s.Ledger.Former(ctx, id, req.GetDistinctId())
		if err != nil {
			return nil, err
		}
		if former != 0 {
			no = former
		}
	}
	list, err := s.Ledger.Members(ctx, id, []uint64{no})
	if err != nil {
		return nil, err
	}
	if len(list) == 0 || list[0].Props == nil {
		return nil, missing
	}
	p, err := profileMessage(&list[0])
	return &ingestionv1.GetProfileResponse{Profile: p}, err
}

func profileMessage(m *ledger.Member) (*ingestionv1.Profile, error) {
	props := &structpb.Struct{}
	if err := props.UnmarshalJSON(m.Props); err != nil {
		return nil, err
	}
	return &ingestionv1.Profile{DistinctId: m.DistinctID, UserNo: m.UserNo, Properties: props, UpdateTime: timestamppb.New(m.Updated)}, nil
}

// ListProfiles pages through profiles by user number.
func (s *Data) ListProfiles(ctx context.Context, req *ingestionv1.ListProfilesRequest) (*ingestionv1.ListProfilesResponse, error) {
	id, err := projectID(req.GetParent())
	if err != nil {
		return nil, err
	}
	after, err := resource.PageToken(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	size := resource.PageSize(req.GetPageSize(), 100, 1000)
	list, err := s.Ledger.Profiles(ctx, id, uint64(after), size+1) //nolint:gosec // PageToken refuses negatives
	if err != nil {
		return nil, err
	}
	list, next := resource.NextPage(list, size, func(m ledger.Member) int64 { return int64(m.UserNo) }) //nolint:gosec // below 2^63
	out := &ingestionv1.ListProfilesResponse{NextPageToken: next}
	for i := range list {
		p, err := profileMessage(&list[i])
		if err != nil {
			return nil, err
		}
		out.Profiles = append(out.Profiles, p)
	}
	return out, nil
}

// GetGroupProfile returns the profile of a group.
func (s *Data) GetGroupProfile(ctx context.Context, req *ingestionv1.GetGroupProfileRequest) (*ingestionv1.GetGroupProfileResponse, error) {
	id, err := projectID(req.GetParent())
	if err != nil {
		return nil, err
	}
	g, err := s.Ledger.Group(ctx, id, req.GetGroupKey(), req.GetGroupId())
	if err != nil {
		return nil, err
	}
	if g == nil {
		return nil, fault.New(fault.NotFound, "GROUP_PROFILE_NOT_FOUND", "no group has this group_key and group_id")
	}
	m, err := groupMessage(g)
	return &ingestionv1.GetGroupProfileResponse{GroupProfile: m}, err
}

func groupMessage(g *ledger.Group) (*ingestionv1.GroupProfile, error) {
	props := &structpb.Struct{}
	if err := props.UnmarshalJSON(g.Props); err != nil {
		return nil, err
	}
	return &ingestionv1.GroupProfile{GroupKey: g.Key, GroupId: g.ID, Properties: props, UpdateTime: timestamppb.New(g.Updated)}, nil
}

// ListGroupProfiles pages through group profiles by key and id.
func (s *Data) ListGroupProfiles(ctx context.Context, req *ingestionv1.ListGroupProfilesRequest) (*ingestionv1.ListGroupProfilesResponse, error) {
	id, err := projectID(req.GetParent())
	if err != nil {
		return nil, err
	}
	key, group, err := resource.PairToken(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	size := resource.PageSize(req.GetPageSize(), 100, 1000)
	list, err := s.Ledger.Groups(ctx, id, req.GetGroupKey(), key, group, size+1)
	if err != nil {
		return nil, err
	}
	out := &ingestionv1.ListGroupProfilesResponse{}
	if len(list) > size {
		list = list[:size]
		out.NextPageToken = resource.NextPair(list[size-1].Key, list[size-1].ID)
	}
	for i := range list {
		m, err := groupMessage(&list[i])
		if err != nil {
			return nil, err
		}
		out.GroupProfiles = append(out.GroupProfiles, m)
	}
	return out, nil
}

// ListWarnings returns a project's warnings by kind.
func (s *Data) ListWarnings(ctx context.Context, req *ingestionv1.ListWarningsRequest) (*ingestionv1.ListWarningsResponse, error) {
	id, err := projectID(req.GetParent())
	if err != nil {
		return nil, err
	}
	list, err := s.Ledger.Warnings(ctx, id)
	if err != nil {
		return nil, err
	}
	out := &ingestionv1.ListWarningsResponse{}
	for _, w := range list {
		out.Warnings = append(out.Warnings, &ingestionv1.Warning{Kind: w.Kind, Text: identity.WarningText(w.Kind), Count: w.Count, LastTime: timestamppb.New(w.Last)})
	}
	return out, nil
}

// GetDataStatistics counts what a project holds.
func (s *Data) GetDataStatistics(ctx context.Context, req *ingestionv1.GetDataStatisticsRequest) (*ingestionv1.GetDataStatisticsResponse, error) {
	id, err := projectID(req.GetParent())
	if err != nil {
		return nil, err
	}
	n, err := s.Warehouse.Events(ctx, id)
	if err != nil {
		return nil, err
	}
	st, err := s.Ledger.State(ctx, id)
	return &ingestionv1.GetDataStatisticsResponse{Events: n, Duplicates: s.Pipeline.Duplicates(id), Profiles: st.Profiles, Users: st.Users}, err
}

// RebuildProjection makes the warehouse's copy of the profiles anew.
func (s *Data) RebuildProjection(ctx context.Context, req *ingestionv1.RebuildProjectionRequest) (*ingestionv1.RebuildProjectionResponse, error) {
	id, err := projectID(req.GetParent())
	if err != nil {
		return nil, err
	}
	n, err := s.Feeder.Rebuild(ctx, id)
	return &ingestionv1.RebuildProjectionResponse{Profiles: n}, err
}
