package cohortsync_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"

	"github.com/cohortbridge/cohortbridge/services/cohortsync"
	"github.com/cohortbridge/cohortbridge/services/cohortsync/benchkit"
)

func fields(t *testing.T, err error) (out []string) {
	t.Helper()
	for _, d := range status.Convert(err).Details() {
		if b, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range b.GetFieldViolations() {
				out = append(out, v.GetField())
			}
		}
	}
	return out
}

func TestBadDefinitionIsRefusedWithThePath(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	prop := func(ty typev1.ValueType, op typev1.PropertyOperator, v ...*typev1.PropertyValue) *typev1.Expression {
		return &typev1.Expression{Node: &typev1.Expression_Property{Property: &typev1.PropertyLeaf{Filter: &typev1.PropertyFilter{Property: "age", Type: ty, Operator: op, Operands: v}}}}
	}
	text := &typev1.PropertyValue{Value: &typev1.PropertyValue_StringValue{StringValue: "x"}}
	bad := prop(typev1.ValueType_VALUE_TYPE_NUMBER, typev1.PropertyOperator_PROPERTY_OPERATOR_EQUALS, text)
	def := &typev1.Expression{Node: &typev1.Expression_AllOf{AllOf: &typev1.ExpressionList{Operands: []*typev1.Expression{benchkit.Did("Buy"), bad}}}}
	_, err := r.Cohorts.CreateCohort(r.ctx, &cohortsyncv1.CreateCohortRequest{Parent: "projects/1", Cohort: &cohortsyncv1.Cohort{DisplayName: "x", Definition: def}})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	require.Equal(t, []string{"cohort.definition.all_of[1].property.filter.operands[0]"}, fields(t, err))

	for _, m := range []typev1.Measure{typev1.Measure_MEASURE_UNSPECIFIED, typev1.Measure_MEASURE_COUNT} {
		few := benchkit.Did("Buy")
		few.GetBehavior().Measure, few.GetBehavior().Threshold = m, proto.Float64(-1)
		_, err = r.Cohorts.CreateCohort(r.ctx, &cohortsyncv1.CreateCohortRequest{Parent: "projects/1", Cohort: &cohortsyncv1.Cohort{DisplayName: "x", Definition: few}})
		require.Equal(t, codes.InvalidArgument, status.Code(err))
		require.Equal(t, []string{"cohort.definition.behavior.threshold"}, fields(t, err))
	}

	deep := benchkit.Did("Buy")
	for range 11 {
		deep = &typev1.Expression{Node: &typev1.Expression_Not{Not: deep}}
	}
	_, err = r.Cohorts.CreateCohort(r.ctx, &cohortsyncv1.CreateCohortRequest{Parent: "projects/1", Cohort: &cohortsyncv1.Cohort{DisplayName: "x", Definition: deep}})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	list, err := r.Cohorts.ListCohorts(r.ctx, &cohortsyncv1.ListCohortsRequest{Parent: "projects/1"})
	require.NoError(t, err)
	require.Empty(t, list.GetCohorts(), "nothing may be stored")
}

func TestUnknownThingsAreNotFound(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	c, err := r.Cohorts.CreateCohort(r.ctx, &cohortsyncv1.CreateCohortRequest{Parent: "projects/1", Cohort: &cohortsyncv1.Cohort{DisplayName: "x", Definition: benchkit.Did("Buy")}})
	require.NoError(t, err)
	for name, call := range map[string]func() error{
		"sync": func() error {
			_, err := r.Syncs.RunSync(r.ctx, &cohortsyncv1.RunSyncRequest{Name: "projects/1/syncs/99"})
			return err
		},
		"project": func() error {
			_, err := r.Cohorts.GetCohort(r.ctx, &cohortsyncv1.GetCohortRequest{Name: "projects/2/cohorts/1"})
			return err
		},
		"run": func() error {
			_, err := r.Runs.GetRun(r.ctx, &cohortsyncv1.GetRunRequest{Name: "projects/1/syncs/1/runs/1"})
			return err
		},
		"connector": func() error {
			_, err := r.Syncs.CreateSync(r.ctx, &cohortsyncv1.CreateSyncRequest{Parent: "projects/1", Sync: &cohortsyncv1.Sync{Cohort: c.GetCohort().GetName(), Connector: "projects/1/connectors/9", Mode: oneTime}})
			return err
		},
		"cohort": func() error {
			_, err := r.Syncs.CreateSync(r.ctx, &cohortsyncv1.CreateSyncRequest{Parent: "projects/1", Sync: &cohortsyncv1.Sync{Cohort: "projects/1/cohorts/9", Connector: "projects/1/connectors/1", Mode: oneTime}})
			return err
		},
	} {
		require.Equal(t, codes.NotFound, status.Code(call()), name)
	}
}

func TestRepeatedCreatesReturnTheFirst(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	r.world.SetLeaf("Buy", r.people(3)...)
	creq := &cohortsyncv1.CreateCohortRequest{Parent: "projects/1", RequestId: "r1", Cohort: &cohortsyncv1.Cohort{DisplayName: "x", Definition: benchkit.Did("Buy")}}
	a, err := r.Cohorts.CreateCohort(r.ctx, creq)
	require.NoError(t, err)
	b, err := r.Cohorts.CreateCohort(r.ctx, creq)
	require.NoError(t, err)
	require.Equal(t, a.GetCohort().GetName(), b.GetCohort().GetName())
	creq.RequestId = "r2"
	_, err = r.Cohorts.CreateCohort(r.ctx, creq)
	require.Equal(t, codes.AlreadyExists, status.Code(err))
	require.Equal(t, []string{"cohort.display_name"}, fields(t, err))
	sreq := &cohortsyncv1.CreateSyncRequest{Parent: "projects/1", RequestId: "s1", Sync: &cohortsyncv1.Sync{Cohort: a.GetCohort().GetName(), Connector: "projects/1/connectors/1", Mode: oneTime}}
	s1, err := r.Syncs.CreateSync(r.ctx, sreq)
	require.NoError(t, err)
	s2, err := r.Syncs.CreateSync(r.ctx, sreq)
	require.NoError(t, err)
	require.Equal(t, s1.GetRun().GetName(), s2.GetRun().GetName())
	_, err = r.Wait(r.ctx, s1.GetRun().GetName())
	require.NoError(t, err)
	_, err = r.Cohorts.DeleteCohort(r.ctx, &cohortsyncv1.DeleteCohortRequest{Name: a.GetCohort().GetName()})
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "a cohort in use stays")
	_, err = r.Syncs.DeleteSync(r.ctx, &cohortsyncv1.DeleteSyncRequest{Name: s1.GetSync().GetName()})
	require.NoError(t, err)
	_, err = r.Cohorts.DeleteCohort(r.ctx, &cohortsyncv1.DeleteCohortRequest{Name: a.GetCohort().GetName()})
	require.NoError(t, err)
}

func TestUpdateNeedsTheEtagAndRaisesTheVersionOnlyForDefinitions(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	c, err := r.Cohorts.CreateCohort(r.ctx, &cohortsyncv1.CreateCohortRequest{Parent: "projects/1", Cohort: &cohortsyncv1.Cohort{DisplayName: "x", Definition: benchkit.Did("Buy")}})
	require.NoError(t, err)
	up, err := r.Cohorts.UpdateCohort(r.ctx, &cohortsyncv1.UpdateCohortRequest{Cohort: &cohortsyncv1.Cohort{Name: c.GetCohort().GetName(), DisplayName: "y", Etag: c.GetCohort().GetEtag()}})
	require.NoError(t, err)
	require.EqualValues(t, 1, up.GetCohort().GetVersion())
	_, err = r.Cohorts.UpdateCohort(r.ctx, &cohortsyncv1.UpdateCohortRequest{Cohort: &cohortsyncv1.Cohort{Name: c.GetCohort().GetName(), DisplayName: "z", Etag: c.GetCohort().GetEtag()}})
	require.Equal(t, codes.Aborted, status.Code(err))
	up, err = r.Cohorts.UpdateCohort(r.ctx, &cohortsyncv1.UpdateCohortRequest{Cohort: &cohortsyncv1.Cohort{Name: c.GetCohort().GetName(), DisplayName: "y", Definition: benchkit.Did("Sell")}})
	require.NoError(t, err)
	require.EqualValues(t, 2, up.GetCohort().GetVersion())
	require.Equal(t, "did Sell", up.GetCohort().GetSummary())
}

func TestPreviewAndMembersPageThroughOneEvaluation(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	all := r.people(10)
	r.world.SetLeaf("Buy", append(all, 11)...)
	c, err := r.Cohorts.CreateCohort(r.ctx, &cohortsyncv1.CreateCohortRequest{Parent: "projects/1", Cohort: &cohortsyncv1.Cohort{DisplayName: "x", Definition: benchkit.Did("Buy")}})
	require.NoError(t, err)
	p, err := r.Cohorts.PreviewCohort(r.ctx, &cohortsyncv1.PreviewCohortRequest{Parent: "projects/1", Cohort: c.GetCohort().GetName(), SampleSize: 3})
	require.NoError(t, err)
	require.EqualValues(t, 11, p.GetEvaluation().GetUsers())
	require.EqualValues(t, 10, p.GetEvaluation().GetIdentifiedUsers())
	require.Equal(t, []string{"u1", "u2", "u3"}, p.GetSampleDistinctIds())
	var got []uint64
	for token := ""; ; {
		resp, err := r.Cohorts.ListMembers(r.ctx, &cohortsyncv1.ListMembersRequest{Parent: c.GetCohort().GetName(), PageSize: 4, PageToken: token})
		require.NoError(t, err)
		require.EqualValues(t, 11, resp.GetTotal())
		for _, m := range resp.GetMembers() {
			got = append(got, m.GetUserNo())
			require.Equal(t, m.GetUserNo() != 11, m.GetIdentified())
		}
		r.world.SetLeaf("Buy") // a later evaluation would be empty
		if token = resp.GetNextPageToken(); token == "" {
			break
		}
	}
	require.Len(t, got, 11)
}

func TestAMemberSetIsTheWholeCohortAtOneInstant(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	all := r.people(3)
	r.world.SetLeaf("Buy", append(all, 11)...)
	c, err := r.Cohorts.CreateCohort(r.ctx, &cohortsyncv1.CreateCohortRequest{Parent: "projects/1", Cohort: &cohortsyncv1.Cohort{DisplayName: "x", Definition: benchkit.Did("Buy")}})
	require.NoError(t, err)
	set, err := r.Cohorts.GetMemberSet(r.ctx, &cohortsyncv1.GetMemberSetRequest{Parent: c.GetCohort().GetName()})
	require.NoError(t, err)
	require.EqualValues(t, 4, set.GetCount())
	users := roaring64.New()
	require.NoError(t, users.UnmarshalBinary(set.GetRoaring()))
	require.Equal(t, append(all, 11), users.ToArray())
	require.False(t, set.GetAsOf().AsTime().IsZero())
	_, err = r.Cohorts.GetMemberSet(r.ctx, &cohortsyncv1.GetMemberSetRequest{Parent: "projects/1/cohorts/999"})
	require.Equal(t, codes.NotFound, status.Code(err))
}

// clock is a clock that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) Advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

func TestDynamicSyncRunsWhenDueAndNotWhilePaused(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	clk := &clock{now: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)}
	r.cfg.Now = clk.Now
	r.restart()
	r.world.SetLeaf("Buy", r.people(3)...)
	s := r.sync("Buy", dynamic)
	runs := func() []*cohortsyncv1.Run {
		resp, err := r.Runs.ListRuns(r.ctx, &cohortsyncv1.ListRunsRequest{Parent: s.GetName()})
		require.NoError(t, err)
		return resp.GetRuns()
	}
	require.Empty(t, runs())
	clk.Advance(15 * time.Minute)
	require.Eventually(t, func() bool {
		l := runs()
		return len(l) == 1 && l[0].GetState() == cohortsyncv1.Run_STATE_SUCCEEDED
	}, 10*time.Second, 20*time.Millisecond)
	require.Equal(t, cohortsyncv1.Run_TRIGGER_SCHEDULE, runs()[0].GetTrigger())
	_, err := r.Syncs.PauseSync(r.ctx, &cohortsyncv1.PauseSyncRequest{Name: s.GetName(), Text: "holiday"})
	require.NoError(t, err)
	clk.Advance(time.Hour)
	got, err := r.Syncs.ResumeSync(r.ctx, &cohortsyncv1.ResumeSyncRequest{Name: s.GetName()})
	require.NoError(t, err)
	require.Equal(t, clk.Now().Add(15*time.Minute).Unix(), got.GetSync().GetNextRunTime().GetSeconds())
	_, err = r.Wait(r.ctx, got.GetRun().GetName())
	require.NoError(t, err)
	require.Len(t, runs(), 2, "what was missed while paused is not made up for")
	// Three days without a confirmed run: the destination is not trusted to hold what was sent.
	_, err = r.Syncs.PauseSync(r.ctx, &cohortsyncv1.PauseSyncRequest{Name: s.GetName()})
	require.NoError(t, err)
	clk.Advance(73 * time.Hour)
	got, err = r.Syncs.ResumeSync(r.ctx, &cohortsyncv1.ResumeSyncRequest{Name: s.GetName()})
	require.NoError(t, err)
	last, err := r.Wait(r.ctx, got.GetRun().GetName())
	require.NoError(t, err)
	require.True(t, r.ok(last).GetFull())
}

func TestLimitsOfSyncs(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	r.cfg.MaxDynamicSyncs, r.cfg.MaxMembers = 1, 5
	r.restart()
	r.world.SetLeaf("Buy", r.people(6)...)
	s := r.sync("Buy", dynamic)
	_, err := r.CreateSync(r.ctx, "Other", 1, dynamic)
	require.Equal(t, codes.FailedPrecondition, status.Code(err))
	run := r.run(s)
	require.Equal(t, "TOO_LARGE", run.GetReason())
	got, err := r.Syncs.GetSync(r.ctx, &cohortsyncv1.GetSyncRequest{Name: s.GetName()})
	require.NoError(t, err)
	require.Equal(t, "TOO_LARGE", got.GetSync().GetPause().GetReason())
	require.Nil(t, got.GetSync().GetNextRunTime(), "a paused sync has no next run")
	require.Contains(t, r.log.String(), `"state":"FAILED"`)
	_, err = r.Syncs.CreateSync(r.ctx, &cohortsyncv1.CreateSyncRequest{Parent: "projects/1", Sync: &cohortsyncv1.Sync{Cohort: s.GetCohort(), Connector: s.GetConnector(), Mode: oneTime, Interval: durationpb.New(time.Hour)}})
	require.Equal(t, []string{"sync.interval"}, fields(t, err))
}

func TestRunIsOneTraceFromTheCallersSpanToTheCall(t *testing.T) {
	exp := tracetest.NewInMemoryExporter()
	tp := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exp))
	old, oldProp := otel.GetTracerProvider(), otel.GetTextMapPropagator()
	otel.SetTracerProvider(tp)
	otel.SetTextMapPropagator(propagation.TraceContext{})
	t.Cleanup(func() { otel.SetTracerProvider(old); otel.SetTextMapPropagator(oldProp) })
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	r.world.SetLeaf("Buy", r.people(1500)...)
	s := r.sync("Buy", dynamic)
	ctx, click := tp.Tracer("test").Start(r.ctx, "click")
	run, err := r.Run(ctx, s.GetName())
	require.NoError(t, err)
	click.End()
	require.Equal(t, click.SpanContext().TraceID().String(), run.GetTraceId())
	require.NoError(t, r.Close(context.Background()))
	r.start()

	byID := map[string]tracetest.SpanStub{}
	for _, sp := range exp.GetSpans() {
		byID[sp.SpanContext.SpanID().String()] = sp
		text := fmt.Sprint(sp.Attributes, sp.Events, sp.Status, sp.Name)
		require.NotContains(t, text, "@example.org")
		require.NotContains(t, text, passcode)
	}
	count := map[string]int{}
	parents := map[string]string{"sync.run": "cohortbridge.cohortsync.v1.SyncService/RunSync", "cohort.evaluate": "sync.run", "cohort.leaf": "cohort.evaluate", "sync.plan": "sync.run",
		"delivery.batch": "sync.run", "delivery.attempt": "delivery.batch", "POST /partner/mixpanel/cohort": "delivery.attempt", "sync.confirm": "sync.run"}
	for _, sp := range exp.GetSpans() {
		if sp.SpanContext.TraceID() != click.SpanContext().TraceID() {
			continue
		}
		if want, ok := parents[sp.Name]; ok {
			count[sp.Name]++
			require.Equal(t, want, byID[sp.Parent.SpanID().String()].Name, "parent of %s", sp.Name)
		}
	}
	require.Equal(t, map[string]int{"sync.run": 1, "cohort.evaluate": 1, "cohort.leaf": 1, "sync.plan": 1, "delivery.batch": 2, "delivery.attempt": 2, "POST /partner/mixpanel/cohort": 2, "sync.confirm": 1}, count)
	reqs := get[map[string]any](r, "/sandbox/requests")
	require.Contains(t, fmt.Sprint(reqs), click.SpanContext().TraceID().String(), "the trace goes out with the call")
}

func TestSecondProcessOnTheSameDirectoryIsRefused(t *testing.T) {
	r := newRig(t, partner, sandbox.Knobs{}, nil)
	_, err := cohortsync.New(r.ctx, r.cfg, cohortsync.Deps{})
	require.ErrorContains(t, err, "in use")
}

// crashDir, when set, makes the test binary a process that is to be killed.
const crashDir, crashURL = "COHORTSYNC_TEST_CRASH_DIR", "COHORTSYNC_TEST_CRASH_URL"

// crashed is how many members the killed runs have: so many that a run outlives
// five kills, with a hundred a call where others have a thousand.
func crashed(kind channelKind) uint64 {
	if kind == apiSegment {
		return 3000
	}
	return 30_000
}

// TestCrashingProcess is the process of TestKilledProcessLosesAndDoublesNothing.
func TestCrashingProcess(t *testing.T) {
	if os.Getenv(crashDir) == "" {
		return // only meant to run as a child
	}
	r := &rig{t: t, ctx: t.Context(), world: benchkit.NewWorld(), url: os.Getenv(crashURL), cfg: testConfig(t), log: &syncBuffer{}}
	r.cfg.DataDir = os.Getenv(crashDir)
	kind := channelKind(len(os.Getenv("COHORTSYNC_TEST_CRASH_CHANNEL")))
	r.world.SetLeaf("Buy", r.people(crashed(kind))...)
	r.connector(1, kind, passcode)
	r.start()
	list, err := r.Syncs.ListSyncs(r.ctx, &cohortsyncv1.ListSyncsRequest{Parent: "projects/1"})
	require.NoError(t, err)
	if len(list.GetSyncs()) == 0 {
		s := r.sync("Buy", dynamic)
		_, err := r.Syncs.RunSync(r.ctx, &cohortsyncv1.RunSyncRequest{Name: s.GetName()})
		require.NoError(t, err)
	}
	require.NoError(t, os.WriteFile(r.cfg.DataDir+".begun", nil, 0o600))
	<-r.ctx.Done()
}

func TestKilledProcessLosesAndDoublesNothing(t *testing.T) {
	for kind, mark := range map[channelKind]string{partner: "1", customList: "22", apiSegment: "333"} {
		t.Run(kind.String(), func(t *testing.T) {
			r := newRig(t, kind, sandbox.Knobs{LatencyMS: 60, Rate5xx: 0.1, Seed: 3}, nil)
			require.NoError(t, r.Close(context.Background()))
			for kill := range 5 {
				cmd := exec.Command(os.Args[0], "-test.run", "^TestCrashingProcess$")
				cmd.Env = append(os.Environ(), crashDir+"="+r.cfg.DataDir, crashURL+"="+r.url, "COHORTSYNC_TEST_CRASH_CHANNEL="+mark)
				begun := r.cfg.DataDir + ".begun"
				_ = os.Remove(begun) // the first time there is none
				require.NoError(t, cmd.Start())
				require.Eventually(t, func() bool { _, err := os.Stat(begun); return err == nil }, 30*time.Second, 5*time.Millisecond)
				time.Sleep(time.Duration(20+kill*170) * time.Millisecond) // a moment of the run that differs each time
				require.NoError(t, cmd.Process.Kill())
				_ = cmd.Wait() // it was killed
			}
			all := r.people(crashed(kind))
			r.world.SetLeaf("Buy", all...)
			r.start()
			list, err := r.Syncs.ListSyncs(r.ctx, &cohortsyncv1.ListSyncsRequest{Parent: "projects/1"})
			require.NoError(t, err)
			require.Len(t, list.GetSyncs(), 1)
			s := list.GetSyncs()[0]
			if s.GetLastRun() != nil {
				run, err := r.Wait(r.ctx, s.GetLastRun().GetName())
				require.NoError(t, err)
				r.balanced(run)
				t.Logf("taken up %d times, %d calls", run.GetAttempts(), run.GetTotals().GetCalls())
				require.Greater(t, run.GetAttempts(), int32(1), "the run must have been killed")
			}
			r.knobs(sandbox.Knobs{})
			r.ok(r.run(s))
			require.Equal(t, r.identifiers(all...), r.segment("Buy"))
		})
	}
}
