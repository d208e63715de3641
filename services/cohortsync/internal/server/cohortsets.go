package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/platform/resource"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/cohort"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/engine"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/idlist"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/internal/store"
)

// ListEvaluations implements cohortsyncv1.CohortServiceServer.
func (s *Cohorts) ListEvaluations(ctx context.Context, req *cohortsyncv1.ListEvaluationsRequest) (*cohortsyncv1.ListEvaluationsResponse, error) {
	c, err := s.get(ctx, "parent", req.GetParent())
	if err != nil {
		return nil, err
	}
	before, err := resource.PageToken(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	var from time.Time
	if before > 0 {
		from = time.UnixMicro(before)
	}
	size := resource.PageSize(req.GetPageSize(), 100, 1000)
	list, err := s.Store.Evaluations(ctx, c.ProjectID, c.ID, from, size+1)
	if err != nil {
		return nil, err
	}
	list, next := resource.NextPage(list, size, func(e store.EvaluationRecord) int64 { return e.AsOf.UnixMicro() })
	out := &cohortsyncv1.ListEvaluationsResponse{NextPageToken: next}
	for _, e := range list {
		out.Evaluations = append(out.Evaluations, &cohortsyncv1.EvaluationRecord{
			AsOf: stamp(e.AsOf), Users: e.Users, IdentifiedUsers: e.Identified, Duration: durationpb.New(e.Took), Version: e.Version, Reason: e.Reason, ReasonText: e.ReasonText,
		})
	}
	return out, nil
}

// shownRefusals is how many refused lines an answer lists.
const shownRefusals = 100

// UploadIds implements cohortsyncv1.CohortServiceServer.
func (s *Cohorts) UploadIds(stream grpc.ClientStreamingServer[cohortsyncv1.UploadIdsRequest, cohortsyncv1.UploadIdsResponse]) error { //nolint:revive // the contract's name
	first, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return fault.Field("name", "is required, in the first message")
	}
	if err != nil {
		return err
	}
	ctx := stream.Context()
	c, err := s.get(ctx, "name", first.GetName())
	if err != nil {
		return err
	}
	if ids, ok := c.Definition.GetNode().(*typev1.Expression_Ids); !ok || len(ids.Ids.GetDistinctIds()) > 0 {
		return fault.New(fault.Precondition, "NOT_OF_UPLOADED_IDS", `the cohort's definition is not {"ids":{}}: make a cohort with that one, and refer to it with in_cohort`)
	}
	out := &cohortsyncv1.UploadIdsResponse{}
	users := roaring64.New()
	out.Lines, err = idlist.Read(&upload{stream: stream, rest: first.GetCsv()}, func(lines []idlist.Line) error {
		ids := make([]string, len(lines))
		for i, l := range lines {
			ids[i] = l.ID
		}
		found, refused, err := s.Users.Assign(ctx, c.ProjectID, ids, nil)
		if err != nil {
			return err
		}
		users.Or(found)
		out.Refused += int64(len(refused))
		for _, i := range refused {
			if len(out.GetRefusedLines()) < shownRefusals {
				out.RefusedLines = append(out.RefusedLines, &cohortsyncv1.UploadIdsResponse_RefusedLine{Line: lines[i].Number, Reason: "no distinct id: empty, over 255 bytes, or a placeholder such as null"})
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	m, err := s.Store.ChangeCohortMembers(ctx, c.ProjectID, c.ID, s.Now(), func(old *roaring64.Bitmap) *roaring64.Bitmap {
		switch first.GetMode() {
		case cohortsyncv1.UploadIdsRequest_MODE_ADD:
			return roaring64.Or(old, users)
		case cohortsyncv1.UploadIdsRequest_MODE_REMOVE:
			return roaring64.AndNot(old, users)
		default:
			return users
		}
	})
	if err != nil {
		return err
	}
	out.Users, out.Total = int64(users.GetCardinality()), int64(m.Users.GetCardinality())
	return stream.SendAndClose(out)
}

// upload is the CSV of a stream of requests.
type upload struct {
	stream grpc.ClientStreamingServer[cohortsyncv1.UploadIdsRequest, cohortsyncv1.UploadIdsResponse]
	rest   []byte
}

// Read implements io.Reader.
func (u *upload) Read(p []byte) (int, error) {
	for len(u.rest) == 0 {
		m, err := u.stream.Recv()
		if err != nil {
			return 0, err // io.EOF at the end
		}
		if m.GetName() != "" {
			return 0, fault.Field("name", "belongs into the first message only")
		}
		u.rest = m.GetCsv()
	}
	n := copy(p, u.rest)
	u.rest = u.rest[n:]
	return n, nil
}

// everyCohort reads all of a project's cohorts.
func (s *Cohorts) everyCohort(ctx context.Context, project int64) (out []store.Cohort, err error) {
	for after := int64(0); ; {
		list, err := s.Store.ListCohorts(ctx, project, after, 1000)
		if err != nil || len(list) == 0 {
			return out, err
		}
		out, after = append(out, list...), list[len(list)-1].ID
	}
}

// ExportDefinitions implements cohortsyncv1.CohortServiceServer.
func (s *Cohorts) ExportDefinitions(ctx context.Context, req *cohortsyncv1.ExportDefinitionsRequest) (*cohortsyncv1.ExportDefinitionsResponse, error) {
	ids, err := resource.IDs("parent", req.GetParent(), "projects")
	if err != nil {
		return nil, err
	}
	all, err := s.everyCohort(ctx, ids[0])
	if err != nil {
		return nil, err
	}
	byName := map[string]store.Cohort{}
	for _, c := range all {
		byName[resource.Name("projects", ids[0], "cohorts", c.ID)] = c
	}
	wanted := map[int64]bool{}
	var want func(field, name string) error
	want = func(field, name string) error {
		c, ok := byName[name]
		if !ok {
			return fault.New(fault.NotFound, "NOT_FOUND", "%s: %s does not exist in the project", field, name)
		}
		if wanted[c.ID] {
			return nil
		}
		wanted[c.ID] = true
		for _, ref := range cohort.References(c.Definition) {
			if err := want(field, ref); err != nil {
				return err
			}
		}
		return nil
	}
	for i, name := range req.GetCohorts() {
		if err := want(fmt.Sprintf("cohorts[%d]", i), name); err != nil {
			return nil, err
		}
	}
	var entries []cohort.Entry
	for _, c := range all {
		if len(req.GetCohorts()) == 0 || wanted[c.ID] {
			def := cohort.Rename(c.Definition, func(name string) string { return byName[name].DisplayName })
			entries = append(entries, cohort.Entry{DisplayName: c.DisplayName, Description: c.Description, Definition: def})
		}
	}
	doc, err := cohort.WriteDocument(entries)
	return &cohortsyncv1.ExportDefinitionsResponse{Document: doc}, err
}

// provisional is where the numbers of cohorts begin that are only being checked.
const provisional = 100_000_000_000_000_000

// drafts are the cohorts of a project as they would be after an import.
type drafts struct {
	engine.Definitions
	byID map[int64]cohort.Stored
}

// Stored implements cohort.Cohorts.
func (d drafts) Stored(ctx context.Context, project, id int64) (cohort.Stored, error) {
	if c, ok := d.byID[id]; ok {
		return c, nil
	}
	return d.Definitions.Stored(ctx, project, id)
}

// ImportDefinitions implements cohortsyncv1.CohortServiceServer.
func (s *Cohorts) ImportDefinitions(ctx context.Context, req *cohortsyncv1.ImportDefinitionsRequest) (*cohortsyncv1.ImportDefinitionsResponse, error) {
	ids, err := resource.IDs("parent", req.GetParent(), "projects")
	if err != nil {
		return nil, err
	}
	project := ids[0]
	entries, err := cohort.ParseDocument("document", req.GetDocument())
	if err != nil {
		return nil, err
	}
	all, err := s.everyCohort(ctx, project)
	if err != nil {
		return nil, err
	}
	before := map[string]store.Cohort{}
	known := map[string]int64{}
	for _, c := range all {
		before[c.DisplayName], known[c.DisplayName] = c, c.ID
	}
	for i, e := range entries {
		if _, ok := known[e.DisplayName]; !ok {
			known[e.DisplayName] = provisional + int64(i)
		}
	}
	if err := s.checkEntries(ctx, project, entries, known); err != nil {
		return nil, err
	}
	list := make([]store.Cohort, len(entries))
	for i, e := range entries {
		list[i] = store.Cohort{ProjectID: project, DisplayName: e.DisplayName, Description: e.Description}
	}
	var after []store.Cohort
	if req.GetValidateOnly() {
		for i, def := range resolved(project, entries, known) {
			c := list[i]
			c.Definition = def
			after = append(after, c)
		}
	} else {
		after, err = s.Store.ImportCohorts(ctx, project, list, s.Now(), func(ids map[string]int64) ([]*typev1.Expression, error) {
			return resolved(project, entries, ids), nil
		})
		if err != nil {
			return nil, err
		}
	}
	out := &cohortsyncv1.ImportDefinitionsResponse{}
	names := s.names(ctx)
	for _, c := range after {
		m := cohortMessage(c, names, s.Now())
		old, was := before[c.DisplayName]
		if req.GetValidateOnly() {
			m = &cohortsyncv1.Cohort{DisplayName: c.DisplayName, Description: c.Description, Summary: m.GetSummary()}
			if was {
				m.Name = resource.Name("projects", project, "cohorts", old.ID)
			}
		}
		switch {
		case !was:
			out.Created = append(out.Created, m)
		case old.Description == c.Description && string(cohort.Canonical(old.Definition)) == string(cohort.Canonical(c.Definition)):
			out.Unchanged = append(out.Unchanged, m)
		default:
			out.Updated = append(out.Updated, m)
		}
	}
	return out, nil
}

// resolved are the definitions of entries with resource names in place of display names.
func resolved(project int64, entries []cohort.Entry, ids map[string]int64) []*typev1.Expression {
	out := make([]*typev1.Expression, len(entries))
	for i, e := range entries {
		out[i] = cohort.Rename(e.Definition, func(name string) string { return resource.Name("projects", project, "cohorts", ids[name]) })
	}
	return out
}

// checkEntries checks all entries of a document against each other and what is stored.
func (s *Cohorts) checkEntries(ctx context.Context, project int64, entries []cohort.Entry, ids map[string]int64) error {
	at := func(i int) string { return "document.cohorts[" + strconv.Itoa(i) + "]" }
	for i, e := range entries {
		if err := checkNames(&cohortsyncv1.Cohort{DisplayName: e.DisplayName, Description: e.Description}); err != nil {
			f := fault.As(err)
			return fault.Field(strings.Replace(f.Violations[0].Field, "cohort", at(i), 1), "%s", f.Violations[0].Description)
		}
		var missing error
		cohort.EachReference(at(i)+".definition", e.Definition, func(path, name string) {
			if ids[name] == 0 && missing == nil {
				missing = fault.Field(path, "names no cohort of the document or the project by its display_name")
			}
		})
		if missing != nil {
			return missing
		}
	}
	defs := resolved(project, entries, ids)
	view := drafts{engine.Definitions{Store: s.Store}, map[int64]cohort.Stored{}}
	for i, e := range entries {
		view.byID[ids[e.DisplayName]] = cohort.Stored{ID: ids[e.DisplayName], Name: e.DisplayName, Definition: defs[i]}
	}
	for i, e := range entries {
		if err := cohort.Validate(at(i)+".definition", defs[i]); err != nil {
			return err
		}
		if err := cohort.CheckReferences(ctx, view, project, at(i)+".definition", view.byID[ids[e.DisplayName]]); err != nil {
			return err
		}
	}
	return nil
}
