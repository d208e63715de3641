package server

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/channel"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/cohort"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/engine"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// partnerProperty is the profile property that names the user at CleverTap.
const partnerProperty = "$CleverTap_user_id"

// outputPaths are what an update may name without changing it: a cohort that is
// sent back as it was read carries them.
var outputPaths = []string{"name", "version", "summary", "last_evaluation", "create_time", "update_time", "etag", "freshness", "failure_text", "members_update_time"}

// Cohorts serves CohortService.
type Cohorts struct {
	cohortsyncv1.UnimplementedCohortServiceServer
	// Store keeps definitions.
	Store store.Cohorts
	// Users answers evaluations.
	Users engine.Users
	// Now is the clock.
	Now func() time.Time

	mu    sync.Mutex
	pages []memberPages
}

// memberPages is an evaluation that is being paged through.
type memberPages struct {
	cohort, revision, asOf int64
	res                    *cohort.Result
}

const definitionField = "cohort.definition"

// CreateCohort implements cohortsyncv1.CohortServiceServer.
func (s *Cohorts) CreateCohort(ctx context.Context, req *cohortsyncv1.CreateCohortRequest) (*cohortsyncv1.CreateCohortResponse, error) {
	ids, err := resource.IDs("parent", req.GetParent(), "projects")
	if err != nil {
		return nil, err
	}
	c := req.GetCohort()
	if err := checkNames(c); err != nil {
		return nil, err
	}
	if err := s.check(ctx, ids[0], definitionField, cohort.Stored{Definition: c.GetDefinition()}); err != nil {
		return nil, err
	}
	out, err := s.Store.CreateCohort(ctx, store.Cohort{ProjectID: ids[0], DisplayName: c.GetDisplayName(), Description: c.GetDescription(), Definition: c.GetDefinition(), Created: s.Now()}, req.GetRequestId())
	if err != nil {
		return nil, err
	}
	return &cohortsyncv1.CreateCohortResponse{Cohort: s.message(ctx, out)}, nil
}

// check checks a definition and what it refers to.
func (s *Cohorts) check(ctx context.Context, project int64, field string, c cohort.Stored) error {
	if err := cohort.Validate(field, c.Definition); err != nil {
		return err
	}
	return cohort.CheckReferences(ctx, engine.Definitions{Store: s.Store}, project, field, c)
}

func checkNames(c *cohortsyncv1.Cohort) error {
	if strings.TrimSpace(c.GetDisplayName()) == "" || len([]rune(c.GetDisplayName())) > 100 {
		return fault.Field("cohort.display_name", "needs 1 to 100 characters")
	}
	if len([]rune(c.GetDescription())) > 1000 {
		return fault.Field("cohort.description", "has more than 1,000 characters")
	}
	return nil
}

// names returns what people call a cohort; it asks once for each.
func (s *Cohorts) names(ctx context.Context) func(name string) string {
	known := map[string]string{}
	return func(name string) string {
		if n, ok := known[name]; ok {
			return n
		}
		known[name] = "cohort " + name[strings.LastIndexByte(name, '/')+1:]
		if c, err := s.get(ctx, "name", name); err == nil {
			known[name] = c.DisplayName
		}
		return known[name]
	}
}

func (s *Cohorts) message(ctx context.Context, c store.Cohort) *cohortsyncv1.Cohort {
	return cohortMessage(c, s.names(ctx), s.Now())
}

func (s *Cohorts) get(ctx context.Context, field, name string) (store.Cohort, error) {
	ids, err := resource.IDs(field, name, "projects", "cohorts")
	if err != nil {
		return store.Cohort{}, err
	}
	return s.Store.Cohort(ctx, ids[0], ids[1])
}

// GetCohort implements cohortsyncv1.CohortServiceServer.
func (s *Cohorts) GetCohort(ctx context.Context, req *cohortsyncv1.GetCohortRequest) (*cohortsyncv1.GetCohortResponse, error) {
	c, err := s.get(ctx, "name", req.GetName())
	if err != nil {
		return nil, err
	}
	return &cohortsyncv1.GetCohortResponse{Cohort: s.message(ctx, c)}, nil
}

// ListCohorts implements cohortsyncv1.CohortServiceServer.
func (s *Cohorts) ListCohorts(ctx context.Context, req *cohortsyncv1.ListCohortsRequest) (*cohortsyncv1.ListCohortsResponse, error) {
	ids, err := resource.IDs("parent", req.GetParent(), "projects")
	if err != nil {
		return nil, err
	}
	after, err := resource.PageToken(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	size := resource.PageSize(req.GetPageSize(), 100, 1000)
	list, err := s.Store.ListCohorts(ctx, ids[0], after, size+1)
	if err != nil {
		return nil, err
	}
	list, next := resource.NextPage(list, size, func(c store.Cohort) int64 { return c.ID })
	resp := &cohortsyncv1.ListCohortsResponse{NextPageToken: next}
	names := s.names(ctx)
	for _, c := range list {
		resp.Cohorts = append(resp.Cohorts, cohortMessage(c, names, s.Now()))
	}
	return resp, nil
}

// UpdateCohort implements cohortsyncv1.CohortServiceServer.
func (s *Cohorts) UpdateCohort(ctx context.Context, req *cohortsyncv1.UpdateCohortRequest) (*cohortsyncv1.UpdateCohortResponse, error) {
	in := req.GetCohort()
	c, err := s.get(ctx, "cohort.name", in.GetName())
	if err != nil {
		return nil, err
	}
	if in.GetEtag() != "" && in.GetEtag() != strconv.FormatInt(c.Revision, 10) {
		return nil, fault.New(fault.Conflict, "ETAG_MISMATCH", "the cohort changed since it was read")
	}
	paths := req.GetUpdateMask().GetPaths()
	for i, p := range paths {
		top, _, _ := strings.Cut(p, ".")
		switch {
		case top == "definition": // one value: a path below it can only mean all of it
			paths[i] = "definition"
		case slices.Contains(outputPaths, top), p == "display_name", p == "description":
		default:
			return nil, fault.Field("update_mask", "%q can't be changed; display_name, description and definition can", p)
		}
	}
	wants := func(path string, set bool) bool { return slices.Contains(paths, path) || len(paths) == 0 && set }
	if wants("display_name", in.GetDisplayName() != "") {
		c.DisplayName = in.GetDisplayName()
	}
	if wants("description", in.GetDescription() != "") {
		c.Description = in.GetDescription()
	}
	if err := checkNames(&cohortsyncv1.Cohort{DisplayName: c.DisplayName, Description: c.Description}); err != nil {
		return nil, err
	}
	if wants("definition", in.GetDefinition() != nil) {
		if err := s.check(ctx, c.ProjectID, definitionField, cohort.Stored{ID: c.ID, Name: c.DisplayName, Definition: in.GetDefinition()}); err != nil {
			return nil, err
		}
		if !proto.Equal(c.Definition, in.GetDefinition()) {
			c.Version++
			c.Definition = in.GetDefinition()
		}
	}
	c.Updated = s.Now()
	out, err := s.Store.UpdateCohort(ctx, c)
	if err != nil {
		return nil, err
	}
	return &cohortsyncv1.UpdateCohortResponse{Cohort: s.message(ctx, out)}, nil
}

// DeleteCohort implements cohortsyncv1.CohortServiceServer.
func (s *Cohorts) DeleteCohort(ctx context.Context, req *cohortsyncv1.DeleteCohortRequest) (*emptypb.Empty, error) {
	ids, err := resource.IDs("name", req.GetName(), "projects", "cohorts")
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, s.Store.DeleteCohort(ctx, ids[0], ids[1])
}

// PreviewCohort implements cohortsyncv1.CohortServiceServer.
func (s *Cohorts) PreviewCohort(ctx context.Context, req *cohortsyncv1.PreviewCohortRequest) (*cohortsyncv1.PreviewCohortResponse, error) {
	ids, err := resource.IDs("parent", req.GetParent(), "projects")
	if err != nil {
		return nil, err
	}
	var c cohort.Stored
	switch {
	case (req.GetDefinition() == nil) == (req.GetCohort() == ""):
		return nil, fault.Field("definition", "give a definition or the name of a cohort, not both")
	case req.GetCohort() != "":
		cids, err := resource.IDs("cohort", req.GetCohort(), "projects", "cohorts")
		if err != nil {
			return nil, err
		}
		if cids[0] != ids[0] {
			return nil, fault.Field("cohort", "is not of the project in parent")
		}
		stored, err := s.Store.Cohort(ctx, ids[0], cids[1])
		if err != nil {
			return nil, err
		}
		c = engine.StoredOf(stored)
	default:
		c.Definition = req.GetDefinition()
		if err := s.check(ctx, ids[0], "definition", c); err != nil {
			return nil, err
		}
	}
	res, err := engine.Evaluate(ctx, s.Store, s.Users, ids[0], c, s.Now())
	if err != nil {
		return nil, err
	}
	ev := engine.EvaluationOf(res)
	resp := &cohortsyncv1.PreviewCohortResponse{Evaluation: evaluation(&ev), Summary: cohort.Render(c.Definition, s.names(ctx))}
	if n := int(req.GetSampleSize()); n > 0 && !res.Members.IsEmpty() {
		err := s.Users.Resolve(ctx, ids[0], first(res.Members, 0, n), nil, partnerProperty, func(m channel.Member, _ bool) error {
			resp.SampleDistinctIds = append(resp.SampleDistinctIds, m.DistinctID)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// first is the first n users of a set from a number on.
func first(set *roaring64.Bitmap, from uint64, n int) *roaring64.Bitmap {
	out := roaring64.New()
	it := set.Iterator()
	it.AdvanceIfNeeded(from)
	for i := 0; i < n && it.HasNext(); i++ {
		out.Add(it.Next())
	}
	return out
}

// ListMembers implements cohortsyncv1.CohortServiceServer.
func (s *Cohorts) ListMembers(ctx context.Context, req *cohortsyncv1.ListMembersRequest) (*cohortsyncv1.ListMembersResponse, error) {
	c, err := s.get(ctx, "parent", req.GetParent())
	if err != nil {
		return nil, err
	}
	asOf, from := s.Now(), uint64(0)
	if tok := req.GetPageToken(); tok != "" {
		a, b, ok := strings.Cut(tok, ":")
		us, e1 := strconv.ParseInt(a, 10, 64)
		u, e2 := strconv.ParseUint(b, 10, 64)
		if !ok || e1 != nil || e2 != nil {
			return nil, fault.Field("page_token", "is not one that this call returned")
		}
		asOf, from = time.UnixMicro(us).UTC(), u
	}
	res, err := s.evaluated(ctx, c, asOf)
	if err != nil {
		return nil, err
	}
	size := resource.PageSize(req.GetPageSize(), 1000, 10000)
	page := first(res.Users, from, size)
	resp := &cohortsyncv1.ListMembersResponse{Total: int64(res.Users.GetCardinality())}
	if page.IsEmpty() {
		return resp, nil
	}
	err = s.Users.Resolve(ctx, c.ProjectID, page, nil, partnerProperty, func(m channel.Member, identified bool) error {
		resp.Members = append(resp.Members, &cohortsyncv1.CohortMember{UserNo: m.UserNo, DistinctId: m.DistinctID, PartnerId: m.PartnerID, Identified: identified})
		return nil
	})
	if err != nil {
		return nil, err
	}
	if last := page.Maximum(); last < res.Users.Maximum() {
		resp.NextPageToken = strconv.FormatInt(asOf.UnixMicro(), 10) + ":" + strconv.FormatUint(last+1, 10)
	}
	return resp, nil
}

// GetMemberSet implements cohortsyncv1.CohortServiceServer.
func (s *Cohorts) GetMemberSet(ctx context.Context, req *cohortsyncv1.GetMemberSetRequest) (*cohortsyncv1.GetMemberSetResponse, error) {
	c, err := s.get(ctx, "parent", req.GetParent())
	if err != nil {
		return nil, err
	}
	res, err := engine.Evaluate(ctx, s.Store, s.Users, c.ProjectID, engine.StoredOf(c), s.Now())
	if err != nil {
		return nil, err
	}
	b, err := res.Users.ToBytes()
	return &cohortsyncv1.GetMemberSetResponse{Roaring: b, Count: res.Users.GetCardinality(), AsOf: stamp(res.AsOf)}, err
}

// keptPages is how many evaluations are kept for those who page through them.
const keptPages = 4

// evaluated evaluates a cohort, or returns what an earlier page was made of.
func (s *Cohorts) evaluated(ctx context.Context, c store.Cohort, asOf time.Time) (*cohort.Result, error) {
	key := memberPages{cohort: c.ID, revision: c.Revision, asOf: asOf.UnixMicro()}
	s.mu.Lock()
	for _, p := range s.pages {
		if p.cohort == key.cohort && p.revision == key.revision && p.asOf == key.asOf {
			s.mu.Unlock()
			return p.res, nil
		}
	}
	s.mu.Unlock()
	res, err := engine.Evaluate(ctx, s.Store, s.Users, c.ProjectID, engine.StoredOf(c), asOf)
	if err != nil {
		return nil, err
	}
	key.res = res
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pages = append(s.pages, key); len(s.pages) > keptPages {
		s.pages = slices.Delete(s.pages, 0, 1)
	}
	return res, nil
}
