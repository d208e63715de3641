package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
)

// tree is a trace as parent and child.
type tree struct {
	byID     map[string]*harness.Span
	children map[string][]*harness.Span
}

func newTree(spans []*harness.Span) *tree {
	tr := &tree{map[string]*harness.Span{}, map[string][]*harness.Span{}}
	for _, s := range spans {
		tr.byID[s.ID] = s
		tr.children[s.Parent] = append(tr.children[s.Parent], s)
	}
	return tr
}

// below are the spans of a name under s, at any depth.
func (tr *tree) below(s *harness.Span, name string) []*harness.Span {
	var out []*harness.Span
	for _, c := range tr.children[s.ID] {
		if c.Name == name {
			out = append(out, c)
		}
		out = append(out, tr.below(c, name)...)
	}
	return out
}

func TestOneTraceFollowsARunFromTheClickToEachCleverTapCall(t *testing.T) {
	p := harness.Standalone(t, t.TempDir(), "--sandbox-addr", "127.0.0.1:0")
	c := p.Client(t)
	c.People(t, "traced", 0, 1500, "plan", "pro")
	connector := c.Connector(t, p.Creds.SandboxAddr, registryv1.CleverTap_CHANNEL_PARTNER)
	cohort := c.Cohort(t, "Traced", harness.PropertyIs("plan", "pro"))
	var resp cohortsyncv1.CreateSyncResponse
	answer := c.REST(t, http.MethodPost, c.Project+"/syncs", &cohortsyncv1.Sync{Cohort: cohort, Connector: connector, Mode: cohortsyncv1.Sync_MODE_ONE_TIME}, &resp)
	run := c.MustWatch(t, resp.GetRun().GetName())
	if run.GetTraceId() != answer.Header.Get("X-Trace-Id") {
		t.Fatalf("the run holds trace %s, the request was answered with %s", run.GetTraceId(), answer.Header.Get("X-Trace-Id"))
	}

	var tr *tree
	var root *harness.Span
	calls := int(run.GetTotals().GetCalls())
	harness.Eventually(t.Context(), t, 10*time.Second, func(context.Context) error {
		tr = newTree(harness.Spans(t).Trace(run.GetTraceId()))
		roots := tr.children[""]
		if len(roots) != 1 {
			return fmt.Errorf("%d roots of %d spans", len(roots), len(tr.byID))
		}
		root = roots[0]
		for name, n := range map[string]int{"sync.run": 1, "cohort.evaluate": 1, "sync.plan": 1, "delivery.batch": 2, "sync.confirm": 1} {
			if got := len(tr.below(root, name)); got != n {
				return fmt.Errorf("%d spans %s, want %d", got, name, n)
			}
		}
		return nil
	})
	if root.Name != "POST /v1/projects/{id}/syncs" || root.Kind != tracev1.Span_SPAN_KIND_SERVER {
		t.Errorf("root is %s (%s), want the REST request", root.Name, root.Kind)
	}
	if got := tr.below(root, "cohortbridge.cohortsync.v1.SyncService/CreateSync"); len(got) < 2 {
		t.Errorf("%d spans of the gRPC call, want client and server", len(got))
	}
	runSpan := tr.below(root, "sync.run")[0]
	for _, child := range []string{"cohort.evaluate", "sync.plan", "sync.confirm"} {
		if s := tr.below(runSpan, child)[0]; s.Parent != runSpan.ID {
			t.Errorf("%s is not a child of sync.run", child)
		}
	}
	evaluate := tr.below(runSpan, "cohort.evaluate")[0]
	if got := tr.below(evaluate, "cohortbridge.ingestion.v1.EvaluationService/EvaluateLeaves"); len(got) < 2 {
		t.Errorf("%d spans of the leaf evaluation below cohort.evaluate, want client and server", len(got))
	}
	http := 0
	for _, b := range tr.below(runSpan, "delivery.batch") {
		for _, s := range tr.byID {
			if s.Kind == tracev1.Span_SPAN_KIND_CLIENT && s.Attrs["http.request.method"] != "" && tr.isBelow(s, b) {
				http++
			}
		}
	}
	if http != calls {
		t.Errorf("%d HTTP client spans below the batches, the run made %d calls", http, calls)
	}
	if len(runSpan.Attrs) == 0 {
		t.Error("sync.run has no attributes")
	}
	// CleverTap got the trace, too.
	var log struct {
		Requests []struct{ Path, Traceparent string }
	}
	if err := harness.Sandbox(t.Context(), p.Creds.SandboxAddr, "GET", "/sandbox/requests", nil, &log); err != nil {
		t.Fatal(err)
	}
	carried := 0
	for _, r := range log.Requests {
		if strings.Contains(r.Traceparent, run.GetTraceId()) {
			carried++
		}
	}
	if carried != calls {
		t.Errorf("%d of %d calls carried the trace", carried, calls)
	}
}

func (tr *tree) isBelow(s, ancestor *harness.Span) bool {
	for p := tr.byID[s.Parent]; p != nil; p = tr.byID[p.Parent] {
		if p == ancestor {
			return true
		}
	}
	return false
}
