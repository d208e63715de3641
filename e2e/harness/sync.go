package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"strconv"
	"testing"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"
)

// Connector makes a connector to a sandbox.
func (c *Client) Connector(t testing.TB, sandboxAddr string, channel registryv1.CleverTap_Channel) string {
	t.Helper()
	Secret("passcode", sandbox.DefaultPasscode)
	resp, err := c.Connectors().CreateConnector(t.Context(), &registryv1.CreateConnectorRequest{Parent: c.Project, Connector: &registryv1.Connector{
		DisplayName: "sandbox", Destination: &registryv1.Connector_Clevertap{Clevertap: &registryv1.CleverTap{
			AccountId: sandbox.DefaultAccountID, Passcode: sandbox.DefaultPasscode, Region: "eu1", HostUrl: "http://" + sandboxAddr, Channel: channel, AdminEmail: "admin@example.org",
		}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if resp.GetConnector().GetState() != registryv1.Connector_STATE_CONNECTED {
		t.Fatalf("connector: %s %s", resp.GetConnector().GetState(), resp.GetConnector().GetStateReason())
	}
	return resp.GetConnector().GetName()
}

// PropertyIs is "profile property equals text".
func PropertyIs(property, text string) *typev1.Expression {
	return &typev1.Expression{Node: &typev1.Expression_Property{Property: &typev1.PropertyLeaf{Filter: &typev1.PropertyFilter{
		Property: property, Type: typev1.ValueType_VALUE_TYPE_STRING, Operator: typev1.PropertyOperator_PROPERTY_OPERATOR_EQUALS,
		Operands: []*typev1.PropertyValue{{Value: &typev1.PropertyValue_StringValue{StringValue: text}}},
	}}}}
}

// Cohort makes a cohort.
func (c *Client) Cohort(t testing.TB, name string, def *typev1.Expression) string {
	t.Helper()
	resp, err := c.Cohorts().CreateCohort(t.Context(), &cohortsyncv1.CreateCohortRequest{Parent: c.Project, Cohort: &cohortsyncv1.Cohort{DisplayName: name, Definition: def}})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetCohort().GetName()
}

// Sync makes a sync and returns it with its first run.
func (c *Client) Sync(t testing.TB, cohort, connector string, mode cohortsyncv1.Sync_Mode) (sync, run string) {
	t.Helper()
	resp, err := c.Syncs().CreateSync(t.Context(), &cohortsyncv1.CreateSyncRequest{Parent: c.Project, Sync: &cohortsyncv1.Sync{Cohort: cohort, Connector: connector, Mode: mode}})
	if err != nil {
		t.Fatal(err)
	}
	return resp.GetSync().GetName(), resp.GetRun().GetName()
}

// Final says whether a run is over.
func Final(s cohortsyncv1.Run_State) bool {
	return s >= cohortsyncv1.Run_STATE_SUCCEEDED
}

// Watch follows a run to its end and checks that its outcomes add up.
func (c *Client) Watch(ctx context.Context, run string) (*cohortsyncv1.Run, error) {
	stream, err := c.Runs().WatchRun(ctx, &cohortsyncv1.WatchRunRequest{Name: run})
	if err != nil {
		return nil, err
	}
	var r *cohortsyncv1.Run
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return r, AddsUp(r)
		}
		if err != nil {
			return nil, err
		}
		r = resp.GetRun()
	}
}

// MustWatch is Watch for a run that must succeed.
func (c *Client) MustWatch(t testing.TB, run string) *cohortsyncv1.Run {
	t.Helper()
	r, err := c.Watch(t.Context(), run)
	if err != nil {
		t.Fatal(err)
	}
	if r.GetState() != cohortsyncv1.Run_STATE_SUCCEEDED {
		t.Fatalf("%s is %s: %s %s", run, r.GetState(), r.GetReason(), r.GetReasonText())
	}
	return r
}

// Run runs a sync and follows it; it must succeed.
func (c *Client) Run(t testing.TB, sync string) *cohortsyncv1.Run {
	t.Helper()
	resp, err := c.Syncs().RunSync(t.Context(), &cohortsyncv1.RunSyncRequest{Name: sync})
	if err != nil {
		t.Fatal(err)
	}
	return c.MustWatch(t, resp.GetRun().GetName())
}

// AddsUp checks evaluated = sent + unchanged + skipped + failed + pending.
func AddsUp(r *cohortsyncv1.Run) error {
	t := r.GetTotals()
	if sum := t.GetSent() + t.GetUnchanged() + t.GetSkipped() + t.GetFailed() + t.GetPending(); sum != t.GetEvaluated() {
		return fmt.Errorf("%s: evaluated %d, outcomes add up to %d: %v", r.GetName(), t.GetEvaluated(), sum, t)
	}
	return nil
}

// Segment is the members of the sandbox's segment of a name.
func Segment(ctx context.Context, sandboxAddr, name string) (sandbox.SegmentInfo, map[string]bool, error) {
	var list sandbox.Segments
	if err := Sandbox(ctx, sandboxAddr, "GET", "/sandbox/segments", nil, &list); err != nil {
		return sandbox.SegmentInfo{}, nil, err
	}
	for _, s := range list.Segments {
		if s.Name != name {
			continue
		}
		var m sandbox.Members
		if err := Sandbox(ctx, sandboxAddr, "GET", "/sandbox/segments/"+strconv.FormatInt(s.ID, 10)+"/members", nil, &m); err != nil {
			return s, nil, err
		}
		in := map[string]bool{}
		for _, id := range m.Members {
			in[id] = true
		}
		return s, in, nil
	}
	return sandbox.SegmentInfo{}, nil, fmt.Errorf("no segment %q", name)
}

// SegmentIs fails unless the segment has exactly these members.
func SegmentIs(t testing.TB, sandboxAddr, name string, want map[string]bool) sandbox.SegmentInfo {
	t.Helper()
	info, got, err := Segment(t.Context(), sandboxAddr, name)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(got, want) {
		missing, extra := 0, 0
		for id := range want {
			if !got[id] {
				missing++
			}
		}
		for id := range got {
			if !want[id] {
				extra++
			}
		}
		t.Fatalf("segment %q: %d members, want %d; %d missing, %d too many", name, len(got), len(want), missing, extra)
	}
	return info
}
