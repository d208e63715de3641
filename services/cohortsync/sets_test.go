package cohortsync_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/platform/fault"
	"github.com/cohortbridge/cohortbridge/sandbox"

	"github.com/cohortbridge/cohortbridge/services/cohortsync/benchkit"
)

func uploaded() *typev1.Expression {
	return &typev1.Expression{Node: &typev1.Expression_Ids{Ids: &typev1.IdsLeaf{}}}
}

func inCohorts(names ...string) *typev1.Expression {
	return &typev1.Expression{Node: &typev1.Expression_InCohort{InCohort: &typev1.CohortLeaf{Cohorts: names}}}
}

func (r *rig) cohort(name string, def *typev1.Expression) *cohortsyncv1.Cohort {
	r.t.Helper()
	c, err := r.Cohorts.CreateCohort(r.ctx, &cohortsyncv1.CreateCohortRequest{Parent: "projects/1", Cohort: &cohortsyncv1.Cohort{DisplayName: name, Definition: def}})
	require.NoError(r.t, err)
	return c.GetCohort()
}

// uploadIDs sends a CSV in pieces of a few bytes.
func (r *rig) uploadIDs(cohort string, mode cohortsyncv1.UploadIdsRequest_Mode, csv string) (*cohortsyncv1.UploadIdsResponse, error) {
	r.t.Helper()
	st, err := r.Cohorts.UploadIds(r.ctx)
	require.NoError(r.t, err)
	req := &cohortsyncv1.UploadIdsRequest{Name: cohort, Mode: mode}
	for piece := 7; len(csv) > 0; csv = csv[piece:] {
		piece = min(piece, len(csv))
		req.Csv = []byte(csv[:piece])
		if st.Send(req) != nil {
			break // the answer says why
		}
		req = &cohortsyncv1.UploadIdsRequest{}
	}
	if req.GetName() != "" {
		require.NoError(r.t, st.Send(req))
	}
	return st.CloseAndRecv()
}

func (r *rig) memberIDs(cohort string) (out []string) {
	r.t.Helper()
	resp, err := r.Cohorts.ListMembers(r.ctx, &cohortsyncv1.ListMembersRequest{Parent: cohort})
	require.NoError(r.t, err)
	for _, m := range resp.GetMembers() {
		out = append(out, m.GetDistinctId())
	}
	return out
}

func TestUploadedIDsAreReplacedExtendedAndReducedAsAWhole(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	r.people(9)
	c := r.cohort("List", uploaded())
	require.Equal(t, "of the uploaded ids", c.GetSummary())
	require.Empty(t, r.memberIDs(c.GetName()))

	got, err := r.uploadIDs(c.GetName(), 0, "\ufeff$distinct_id,marker\nu1,x\nu2,x\nu1,x\nnull,x\n,x\nu3,x\n")
	require.NoError(t, err)
	require.Equal(t, []int64{6, 3, 3, 2}, []int64{got.GetLines(), got.GetUsers(), got.GetTotal(), got.GetRefused()})
	require.EqualValues(t, 5, got.GetRefusedLines()[0].GetLine())
	require.Equal(t, []string{"u1", "u2", "u3"}, r.memberIDs(c.GetName()))
	_, err = r.uploadIDs(c.GetName(), cohortsyncv1.UploadIdsRequest_MODE_ADD, "distinct_id\nu4\nu1\n")
	require.NoError(t, err)
	got, err = r.uploadIDs(c.GetName(), cohortsyncv1.UploadIdsRequest_MODE_REMOVE, "distinct_id\nu2\nu9\n")
	require.NoError(t, err)
	require.EqualValues(t, 3, got.GetTotal())
	require.Equal(t, []string{"u1", "u3", "u4"}, r.memberIDs(c.GetName()))

	for csv, want := range map[string]string{"": "is empty", "id\nu5\n": "line 1 must name", "distinct_id\nu5\n\"u6\n": "line 3"} {
		_, err := r.uploadIDs(c.GetName(), 0, csv)
		require.Equal(t, codes.InvalidArgument, status.Code(err), csv)
		require.ErrorContains(t, err, want)
		require.Equal(t, []string{"csv"}, fields(t, err))
	}
	require.Equal(t, []string{"u1", "u3", "u4"}, r.memberIDs(c.GetName()), "a CSV that can't be read changes nothing")
	other := r.cohort("Buyers", benchkit.Did("Buy"))
	_, err = r.uploadIDs(other.GetName(), 0, "distinct_id\nu1\n")
	require.Equal(t, codes.FailedPrecondition, status.Code(err))
	_, err = r.uploadIDs("projects/1/cohorts/999", 0, "distinct_id\nu1\n")
	require.Equal(t, codes.NotFound, status.Code(err))

	// It syncs, and serves other cohorts, as any other.
	got2 := r.cohort("Not in the list", &typev1.Expression{Node: &typev1.Expression_Not{Not: inCohorts(c.GetName())}})
	require.Equal(t, "not in List", got2.GetSummary())
	require.Equal(t, []string{"u2", "u5", "u6", "u7", "u8", "u9"}, r.memberIDs(got2.GetName()))
	s, err := r.Syncs.CreateSync(r.ctx, &cohortsyncv1.CreateSyncRequest{Parent: "projects/1", Sync: &cohortsyncv1.Sync{Cohort: c.GetName(), Connector: "projects/1/connectors/1", Mode: oneTime}, SkipFirstRun: true})
	require.NoError(t, err)
	require.EqualValues(t, 3, r.ok(r.run(s.GetSync())).GetTotals().GetSent())
}

func TestAHugeUploadIsTakenInPieces(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	c := r.cohort("List", uploaded())
	var csv strings.Builder
	csv.WriteString("distinct_id\n")
	for i := range 25_000 {
		fmt.Fprintf(&csv, "u%d\n", i+1)
	}
	st, err := r.Cohorts.UploadIds(r.ctx)
	require.NoError(t, err)
	require.NoError(t, st.Send(&cohortsyncv1.UploadIdsRequest{Name: c.GetName(), Csv: []byte(csv.String())}))
	got, err := st.CloseAndRecv()
	require.NoError(t, err)
	require.Equal(t, []int64{25_000, 25_000}, []int64{got.GetLines(), got.GetTotal()})
}

func TestACohortShowsItsSizeOverTimeAndWhetherItIsFresh(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	r.world.SetLeaf("Buy", r.people(4)...)
	s := r.sync("Buy", dynamic)
	cohort := func() *cohortsyncv1.Cohort {
		c, err := r.Cohorts.GetCohort(r.ctx, &cohortsyncv1.GetCohortRequest{Name: s.GetCohort()})
		require.NoError(t, err)
		return c.GetCohort()
	}
	require.Equal(t, cohortsyncv1.Cohort_FRESHNESS_NEVER, cohort().GetFreshness())
	r.ok(r.run(s))
	require.Equal(t, cohortsyncv1.Cohort_FRESHNESS_FRESH, cohort().GetFreshness())
	r.world.FailEvaluations(func() error { return fault.New(fault.Internal, "X", "broken") })
	require.Equal(t, cohortsyncv1.Run_STATE_FAILED, r.run(s).GetState())
	require.Equal(t, cohortsyncv1.Cohort_FRESHNESS_FAILED, cohort().GetFreshness())
	require.NotEmpty(t, cohort().GetFailureText())
	require.EqualValues(t, 4, cohort().GetLastEvaluation().GetUsers(), "the last one that succeeded stays")
	r.world.FailEvaluations(nil)
	r.world.SetLeaf("Buy", 1, 2, 3)
	r.ok(r.run(s))
	require.Equal(t, cohortsyncv1.Cohort_FRESHNESS_FRESH, cohort().GetFreshness())
	var sizes []string
	for token := ""; ; {
		resp, err := r.Cohorts.ListEvaluations(r.ctx, &cohortsyncv1.ListEvaluationsRequest{Parent: s.GetCohort(), PageSize: 2, PageToken: token})
		require.NoError(t, err)
		for _, e := range resp.GetEvaluations() {
			sizes = append(sizes, fmt.Sprint(e.GetUsers(), e.GetReason()))
		}
		if token = resp.GetNextPageToken(); token == "" {
			break
		}
	}
	require.Equal(t, []string{"3", "0EVALUATION_FAILED", "4"}, sizes, "newest first, a failure is no empty cohort")
}

func TestDefinitionsTravelBetweenProjectsAsOneDocument(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	buyers := r.cohort("Buyers", benchkit.Did("Buy"))
	r.cohort("Others", &typev1.Expression{Node: &typev1.Expression_Not{Not: inCohorts(buyers.GetName())}})
	r.cohort("Lonely", benchkit.Did("Look"))
	others, err := r.Cohorts.ListCohorts(r.ctx, &cohortsyncv1.ListCohortsRequest{Parent: "projects/1"})
	require.NoError(t, err)
	part, err := r.Cohorts.ExportDefinitions(r.ctx, &cohortsyncv1.ExportDefinitionsRequest{Parent: "projects/1", Cohorts: []string{others.GetCohorts()[1].GetName()}})
	require.NoError(t, err)
	require.NotContains(t, part.GetDocument(), "Lonely")
	require.Contains(t, part.GetDocument(), `"Buyers"`, "what is referred to comes along")
	all, err := r.Cohorts.ExportDefinitions(r.ctx, &cohortsyncv1.ExportDefinitionsRequest{Parent: "projects/1"})
	require.NoError(t, err)

	bring := func(project, doc string, dry bool) (created, updated, unchanged int, err error) {
		resp, err := r.Cohorts.ImportDefinitions(r.ctx, &cohortsyncv1.ImportDefinitionsRequest{Parent: project, Document: doc, ValidateOnly: dry})
		return len(resp.GetCreated()), len(resp.GetUpdated()), len(resp.GetUnchanged()), err
	}
	counts := func(a, b, c int, err error) []int { require.NoError(t, err); return []int{a, b, c} }
	require.Equal(t, []int{3, 0, 0}, counts(bring("projects/2", all.GetDocument(), true)))
	require.Equal(t, []int{3, 0, 0}, counts(bring("projects/2", all.GetDocument(), false)))
	require.Equal(t, []int{0, 0, 3}, counts(bring("projects/2", all.GetDocument(), false)))
	require.Equal(t, []int{0, 0, 3}, counts(bring("projects/1", all.GetDocument(), false)))
	changed := strings.Replace(all.GetDocument(), `"Look"`, `"Stare"`, 1)
	require.Equal(t, []int{0, 1, 2}, counts(bring("projects/2", changed, true)))
	require.Equal(t, []int{0, 1, 2}, counts(bring("projects/2", changed, false)))
	again, err := r.Cohorts.ExportDefinitions(r.ctx, &cohortsyncv1.ExportDefinitionsRequest{Parent: "projects/2"})
	require.NoError(t, err)
	require.Equal(t, changed, again.GetDocument())

	for doc, want := range map[string]string{
		`{"cohorts":[{"display_name":"A","definition":{"in_cohort":{"cohorts":["Nobody"]}}}]}`:                                                                      "document.cohorts[0].definition.in_cohort.cohorts[0]",
		`{"cohorts":[{"display_name":"A","definition":{"in_cohort":{"cohorts":["B"]}}},{"display_name":"B","definition":{"not":{"in_cohort":{"cohorts":["A"]}}}}]}`: "document.cohorts[0].definition.in_cohort.cohorts[0]",
		`{"cohorts":[{"display_name":"Buyers","definition":{"in_cohort":{"cohorts":["Others"]}}}]}`:                                                                 "document.cohorts[0].definition.in_cohort.cohorts[0]",
		`{"cohorts":[{"display_name":"","definition":{"external":{}}}]}`:                                                                                            "document.cohorts[0].display_name",
		`{"cohorts":[{"display_name":"A","definition":{"external":{}}},{"display_name":"B","definition":{"behavior":{"events":["x"],"measure":"MEASURE_SUM"}}}]}`:   "document.cohorts[1].definition.behavior.measure_property",
	} {
		_, _, _, err := bring("projects/2", doc, false)
		require.Equal(t, codes.InvalidArgument, status.Code(err), doc)
		require.Equal(t, want, fields(t, err)[0], doc)
	}
	again2, err := r.Cohorts.ExportDefinitions(r.ctx, &cohortsyncv1.ExportDefinitionsRequest{Parent: "projects/2"})
	require.NoError(t, err)
	require.Equal(t, again.GetDocument(), again2.GetDocument(), "a refused document changes nothing")
}

func TestACohortThatOthersReferToStaysAndItsNameIsInTheirSummary(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	a := r.cohort("A", benchkit.Did("Buy"))
	b := r.cohort("B", inCohorts(a.GetName()))
	require.Equal(t, "in A", b.GetSummary())
	_, err := r.Cohorts.DeleteCohort(r.ctx, &cohortsyncv1.DeleteCohortRequest{Name: a.GetName()})
	require.Equal(t, codes.FailedPrecondition, status.Code(err))
	require.ErrorContains(t, err, "(B)")
	_, err = r.Cohorts.UpdateCohort(r.ctx, &cohortsyncv1.UpdateCohortRequest{Cohort: &cohortsyncv1.Cohort{Name: a.GetName(), Definition: inCohorts(b.GetName())}})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	require.Equal(t, []string{"cohort.definition.in_cohort.cohorts[0]"}, fields(t, err))
	_, err = r.Cohorts.PreviewCohort(r.ctx, &cohortsyncv1.PreviewCohortRequest{Parent: "projects/1", Definition: inCohorts("projects/1/cohorts/77")})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
}
