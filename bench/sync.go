package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"time"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"
)

const (
	callLatency = 100 * time.Millisecond
	inFlight    = 15
	pageSize    = 1000
)

// sync measures P5 and P6: a full export of 1 M members, then 0.1 % churn.
func (b *bench) sync(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "cohortbridge-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	sb, err := b.launch(ctx, "sandbox", "--addr", "127.0.0.1:0", "--latency", callLatency.String())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sb.stop()) }()
	s, err := b.standalone(ctx, filepath.Join(dir, "data"), "--allow-private-destinations")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	members := b.n(1_000_000)
	churn := members / 1000
	profile := func(i int, plan string) string {
		return fmt.Sprintf(`{"$token":%q,"$distinct_id":"user-%d","$ip":"0","$set":{"$email":"u%d@example.org","$first_name":"F%d","plan":%q}}`, s.creds.ProjectToken, i, i, i, plan)
	}
	if err := s.engage(ctx, members+churn/2, func(i int) string {
		plan := "pro"
		if i >= members {
			plan = "free"
		}
		return profile(i, plan)
	}); err != nil {
		return err
	}
	name, first, err := s.firstRun(ctx, sb.Sandbox)
	if err != nil {
		return err
	}
	if got := int(first.run.GetTotals().GetSent()); got != members {
		return fmt.Errorf("%d members sent, want %d", got, members)
	}
	bound := math.Ceil(float64(members)/pageSize/inFlight) * callLatency.Seconds()
	b.add(figure{ID: "P5", Value: first.delivering.Seconds(), Unit: "s", Ratio: first.delivering.Seconds() / bound, Against: fmt.Sprintf("bound %.2f s (goal 1.1)", bound),
		Note: fmt.Sprintf("%d members, %d calls; whole run %.2f s", members, first.run.GetTotals().GetCalls(), first.total.Seconds())})

	// Half of the churn leaves, half comes.
	if err := s.engage(ctx, churn, func(i int) string {
		if i < churn/2 {
			return profile(i, "free")
		}
		return profile(members+i-churn/2, "pro")
	}); err != nil {
		return err
	}
	resp, err := cohortsyncv1.NewSyncServiceClient(s.conn).RunSync(ctx, &cohortsyncv1.RunSyncRequest{Name: name})
	if err != nil {
		return err
	}
	second, err := s.watch(ctx, resp.GetRun())
	if err != nil {
		return err
	}
	t := second.run.GetTotals()
	if int(t.GetAdded()+t.GetRemoved()) != churn/2*2 {
		return fmt.Errorf("%d added and %d removed, want %d of each", t.GetAdded(), t.GetRemoved(), churn/2)
	}
	calls := float64(t.GetCalls()) / float64(first.run.GetTotals().GetCalls())
	b.add(figure{ID: "P6", Value: calls * 100, Unit: "% of the full run's calls", Ratio: calls / 0.01, Against: "goal 1 %", Note: fmt.Sprintf("%d added, %d removed, %d calls", t.GetAdded(), t.GetRemoved(), t.GetCalls())})
	share := second.total.Seconds() / first.total.Seconds()
	b.add(figure{ID: "P6-time", Value: share * 100, Unit: "% of the full run's time", Ratio: share / 0.05, Against: "goal 5 %", Note: fmt.Sprintf("%.3f s of %.2f s", second.total.Seconds(), first.total.Seconds())})
	return nil
}

func (s *standalone) firstRun(ctx context.Context, sandboxAddr string) (string, *timedRun, error) {
	conn, err := registryv1.NewConnectorServiceClient(s.conn).CreateConnector(ctx, &registryv1.CreateConnectorRequest{Parent: s.project(), Connector: &registryv1.Connector{
		DisplayName: "bench", Destination: &registryv1.Connector_Clevertap{Clevertap: &registryv1.CleverTap{AccountId: sandbox.DefaultAccountID, Passcode: sandbox.DefaultPasscode, Region: "eu1", HostUrl: "http://" + sandboxAddr}},
	}})
	if err != nil {
		return "", nil, err
	}
	cohort, err := cohortsyncv1.NewCohortServiceClient(s.conn).CreateCohort(ctx, &cohortsyncv1.CreateCohortRequest{Parent: s.project(), Cohort: &cohortsyncv1.Cohort{
		DisplayName: "bench", Definition: &typev1.Expression{Node: &typev1.Expression_Property{Property: &typev1.PropertyLeaf{Filter: &typev1.PropertyFilter{
			Property: "plan", Type: typev1.ValueType_VALUE_TYPE_STRING, Operator: typev1.PropertyOperator_PROPERTY_OPERATOR_EQUALS,
			Operands: []*typev1.PropertyValue{{Value: &typev1.PropertyValue_StringValue{StringValue: "pro"}}},
		}}}},
	}})
	if err != nil {
		return "", nil, err
	}
	// One evaluation brings the projection up to date: a million profiles that
	// were written a moment ago are not what a run usually finds.
	if _, err := cohortsyncv1.NewCohortServiceClient(s.conn).PreviewCohort(ctx, &cohortsyncv1.PreviewCohortRequest{Parent: s.project(), Cohort: cohort.GetCohort().GetName()}); err != nil {
		return "", nil, err
	}
	sync, err := cohortsyncv1.NewSyncServiceClient(s.conn).CreateSync(ctx, &cohortsyncv1.CreateSyncRequest{Parent: s.project(), Sync: &cohortsyncv1.Sync{
		Cohort: cohort.GetCohort().GetName(), Connector: conn.GetConnector().GetName(), Mode: cohortsyncv1.Sync_MODE_DYNAMIC,
	}})
	if err != nil {
		return "", nil, err
	}
	r, err := s.watch(ctx, sync.GetRun())
	return sync.GetSync().GetName(), r, err
}

// timedRun is a finished run with how long its parts took.
type timedRun struct {
	run               *cohortsyncv1.Run
	total, delivering time.Duration
}

// watch follows a run; the times are taken as its states arrive.
func (s *standalone) watch(ctx context.Context, r *cohortsyncv1.Run) (*timedRun, error) {
	stream, err := cohortsyncv1.NewRunServiceClient(s.conn).WatchRun(ctx, &cohortsyncv1.WatchRunRequest{Name: r.GetName()})
	if err != nil {
		return nil, err
	}
	out := &timedRun{}
	var began, ended time.Time
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		out.run = resp.GetRun()
		switch state := out.run.GetState(); {
		case state == cohortsyncv1.Run_STATE_DELIVERING && began.IsZero():
			began = time.Now()
		case state > cohortsyncv1.Run_STATE_DELIVERING && ended.IsZero():
			ended = time.Now()
		}
	}
	if out.run.GetState() != cohortsyncv1.Run_STATE_SUCCEEDED {
		return nil, fmt.Errorf("the run is %s: %s", out.run.GetState(), out.run.GetReasonText())
	}
	out.total = out.run.GetEndTime().AsTime().Sub(out.run.GetStartTime().AsTime())
	if !began.IsZero() {
		out.delivering = ended.Sub(began)
	}
	return out, nil
}
