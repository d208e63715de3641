package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/cohortbridge/cohortbridge/cmd/cohortbridge/internal/roles"
	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
	"github.com/cohortbridge/cohortbridge/sandbox"
)

// SecondRun is what the second dynamic run did.
type SecondRun struct {
	Added   int64 `json:"added"`
	Removed int64 `json:"removed"`
	Updated int64 `json:"updated"`
	Calls   int64 `json:"calls"`
}

// Summary is the demo's result. Every number is read from the system's own APIs,
// the segment's from the sandbox's.
type Summary struct {
	EventsImported   int64            `json:"events_imported"`
	Profiles         int64            `json:"profiles"`
	CohortSize       int64            `json:"cohort_size"`
	Skipped          map[string]int64 `json:"skipped"`
	SegmentName      string           `json:"segment_name"`
	SegmentType      string           `json:"segment_type"`
	SegmentSize      int              `json:"segment_size"`
	SecondRun        SecondRun        `json:"second_run"`
	SegmentSizeAfter int              `json:"segment_size_after"`
	Warnings         map[string]int64 `json:"warnings"`
	CampaignEvents   int              `json:"campaign_events"`
	MTU              int64            `json:"mtu"`
	MTUExemptEvents  int64            `json:"mtu_exempt_events"`
	TraceID          string           `json:"trace_id"`
	Seconds          float64          `json:"seconds"`
}

// demo is one walk through the product.
type demo struct {
	api       *rest
	out       io.Writer // progress, for people
	data      *data
	connector string
	cohort    string
	sum       Summary
}

// cohortName is the cohort's, and so the segment's, name.
const cohortName = "Cart abandoners"

// Run walks through the product against a running system. Progress goes to out.
func Run(ctx context.Context, creds roles.DevCredentials, out io.Writer) (*Summary, error) {
	start := time.Now()
	api := &rest{c: creds, http: &http.Client{Timeout: time.Minute}}
	defer api.http.CloseIdleConnections()
	d := &demo{api: api, out: out, data: generate(start, creds.ProjectToken)}
	for _, step := range []func(context.Context) error{d.importData, d.connect, d.createCohort, d.exportOnce, d.exportDynamic, d.campaign, d.usage} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	d.sum.Seconds = float64(time.Since(start).Milliseconds()) / 1000
	return &d.sum, nil
}

func (d *demo) say(format string, args ...any) {
	_, _ = fmt.Fprintf(d.out, "  "+format+"\n", args...) // progress only
}

func (d *demo) send(ctx context.Context, events []event, updates []update) error {
	for batch := range slices.Chunk(updates, 1000) {
		if err := d.api.engage(ctx, batch); err != nil {
			return err
		}
	}
	for batch := range slices.Chunk(events, 2000) {
		n, err := d.api.importBatch(ctx, batch)
		if err != nil {
			return err
		}
		if n != len(batch) {
			return fmt.Errorf("%d of %d events imported", n, len(batch))
		}
	}
	return nil
}

func (d *demo) importData(ctx context.Context) error {
	if err := d.send(ctx, d.data.events, d.data.updates); err != nil {
		return err
	}
	st, err := d.statistics(ctx, len(d.data.events))
	if err != nil {
		return err
	}
	d.say("imported %d events of %d users, %d with profiles", st.GetEvents(), st.GetUsers(), st.GetProfiles())
	return nil
}

// statistics reads what is stored, and fails unless that is every event sent.
func (d *demo) statistics(ctx context.Context, sent int) (*ingestionv1.GetDataStatisticsResponse, error) {
	var st ingestionv1.GetDataStatisticsResponse
	if err := d.api.call(ctx, http.MethodGet, d.api.project()+"/statistics", nil, &st); err != nil {
		return nil, err
	}
	if int(st.GetEvents()) != sent {
		return nil, fmt.Errorf("%d events sent, %d stored", sent, st.GetEvents())
	}
	d.sum.EventsImported, d.sum.Profiles = st.GetEvents(), st.GetProfiles()
	return &st, nil
}

func (d *demo) connect(ctx context.Context) error {
	var resp registryv1.CreateConnectorResponse
	if err := d.api.call(ctx, http.MethodPost, d.api.project()+"/connectors", &registryv1.Connector{
		DisplayName: "CleverTap sandbox",
		Destination: &registryv1.Connector_Clevertap{Clevertap: &registryv1.CleverTap{
			AccountId: sandbox.DefaultAccountID, Passcode: sandbox.DefaultPasscode, Region: "eu1", HostUrl: "http://" + d.api.c.SandboxAddr,
		}},
	}, &resp); err != nil {
		return err
	}
	if resp.GetConnector().GetState() != registryv1.Connector_STATE_CONNECTED {
		return fmt.Errorf("connector is %s: %s", resp.GetConnector().GetState(), resp.GetConnector().GetStateReason())
	}
	d.connector = resp.GetConnector().GetName()
	d.say("connected to CleverTap account %s", sandbox.DefaultAccountID)
	return nil
}

// definition is "did Add To Cart ≥ 3 times in the last 30 days and did not do
// Purchase in the last 30 days and country is IN or US".
func definition() *typev1.Expression {
	window := &typev1.Window{Span: &typev1.Window_Last{Last: &typev1.RelativeWindow{Amount: targetDays, Unit: typev1.RelativeWindow_UNIT_DAY}}}
	text := func(s string) *typev1.PropertyValue {
		return &typev1.PropertyValue{Value: &typev1.PropertyValue_StringValue{StringValue: s}}
	}
	three := 3.0
	return &typev1.Expression{Node: &typev1.Expression_AllOf{AllOf: &typev1.ExpressionList{Operands: []*typev1.Expression{
		{Node: &typev1.Expression_Behavior{Behavior: &typev1.BehaviorLeaf{Events: []string{"Add To Cart"}, Measure: typev1.Measure_MEASURE_COUNT, Comparator: typev1.Comparator_COMPARATOR_GREATER_OR_EQUAL, Threshold: &three, Window: window}}},
		{Node: &typev1.Expression_Not{Not: &typev1.Expression{Node: &typev1.Expression_Behavior{Behavior: &typev1.BehaviorLeaf{Events: []string{"Purchase"}, Window: window}}}}},
		{Node: &typev1.Expression_Property{Property: &typev1.PropertyLeaf{Filter: &typev1.PropertyFilter{
			Property: "country", Type: typev1.ValueType_VALUE_TYPE_STRING, Operator: typev1.PropertyOperator_PROPERTY_OPERATOR_EQUALS, Operands: []*typev1.PropertyValue{text("IN"), text("US")},
		}}}},
	}}}}
}

func (d *demo) createCohort(ctx context.Context) error {
	var resp cohortsyncv1.CreateCohortResponse
	if err := d.api.call(ctx, http.MethodPost, d.api.project()+"/cohorts", &cohortsyncv1.Cohort{DisplayName: cohortName, Definition: definition()}, &resp); err != nil {
		return err
	}
	d.cohort = resp.GetCohort().GetName()
	d.say("cohort %q: %s", cohortName, resp.GetCohort().GetSummary())
	return nil
}

// createSync makes a sync and follows its first run to its end.
func (d *demo) createSync(ctx context.Context, mode cohortsyncv1.Sync_Mode) (string, *cohortsyncv1.Run, error) {
	s := &cohortsyncv1.Sync{Cohort: d.cohort, Connector: d.connector, Mode: mode}
	if mode == cohortsyncv1.Sync_MODE_DYNAMIC {
		s.Interval = durationpb.New(15 * time.Minute)
	}
	var resp cohortsyncv1.CreateSyncResponse
	if err := d.api.call(ctx, http.MethodPost, d.api.project()+"/syncs", s, &resp); err != nil {
		return "", nil, err
	}
	r, err := d.follow(ctx, resp.GetRun().GetName())
	return resp.GetSync().GetName(), r, err
}

func (d *demo) follow(ctx context.Context, run string) (*cohortsyncv1.Run, error) {
	var last cohortsyncv1.WatchRunResponse
	if err := d.api.watch(ctx, run+":watch", func(m json.RawMessage) error { return protojson.Unmarshal(m, &last) }); err != nil {
		return nil, err
	}
	r := last.GetRun()
	if r.GetState() != cohortsyncv1.Run_STATE_SUCCEEDED {
		return r, fmt.Errorf("%s is %s: %s", run, r.GetState(), r.GetReasonText())
	}
	t := r.GetTotals()
	if t.GetEvaluated() != t.GetSent()+t.GetUnchanged()+t.GetSkipped()+t.GetFailed()+t.GetPending() {
		return r, fmt.Errorf("%s: the outcomes do not add up: %v", run, t)
	}
	return r, nil
}

func (d *demo) exportOnce(ctx context.Context) error {
	_, r, err := d.createSync(ctx, cohortsyncv1.Sync_MODE_ONE_TIME)
	if err != nil {
		return err
	}
	t := r.GetTotals()
	d.sum.CohortSize, d.sum.Skipped, d.sum.Warnings, d.sum.TraceID = r.GetEvaluation().GetIdentifiedUsers(), t.GetSkippedByReason(), t.GetWarnings(), r.GetTraceId()
	seg, err := d.compare(ctx, r)
	if err != nil {
		return fmt.Errorf("after the one-time export: %w", err)
	}
	d.sum.SegmentName, d.sum.SegmentType, d.sum.SegmentSize = seg.Name, seg.Type, seg.Size
	d.say("one-time export: %d users sent in %d calls, segment %q has %d", t.GetSent(), t.GetCalls(), seg.Name, seg.Size)
	return nil
}

func (d *demo) exportDynamic(ctx context.Context) error {
	name, first, err := d.createSync(ctx, cohortsyncv1.Sync_MODE_DYNAMIC)
	if err != nil {
		return err
	}
	if _, err := d.compare(ctx, first); err != nil {
		return fmt.Errorf("after the first dynamic run: %w", err)
	}
	events, updates := d.data.change(d.api.c.ProjectToken)
	if err := d.send(ctx, events, updates); err != nil {
		return err
	}
	if _, err := d.statistics(ctx, int(d.sum.EventsImported)+len(events)); err != nil {
		return err
	}
	var resp cohortsyncv1.RunSyncResponse
	if err := d.api.call(ctx, http.MethodPost, name+":run", &cohortsyncv1.RunSyncRequest{}, &resp); err != nil {
		return err
	}
	r, err := d.follow(ctx, resp.GetRun().GetName())
	if err != nil {
		return err
	}
	t := r.GetTotals()
	d.sum.SecondRun = SecondRun{Added: t.GetAdded(), Removed: t.GetRemoved(), Updated: t.GetUpdated(), Calls: t.GetCalls()}
	seg, err := d.compare(ctx, r)
	if err != nil {
		return fmt.Errorf("after the second dynamic run: %w", err)
	}
	d.sum.SegmentSizeAfter = seg.Size
	d.say("dynamic sync, second run: %d added, %d removed, %d updated in %d calls, segment has %d", t.GetAdded(), t.GetRemoved(), t.GetUpdated(), t.GetCalls(), seg.Size)
	return nil
}

// compare fails unless the segment's members are exactly the cohort's identified
// users, both by the system's own answer and by the demo's own reckoning.
func (d *demo) compare(ctx context.Context, run *cohortsyncv1.Run) (sandbox.SegmentInfo, error) {
	var list sandbox.Segments
	if err := d.api.sandboxJSON(ctx, http.MethodGet, "/sandbox/segments", nil, &list); err != nil {
		return sandbox.SegmentInfo{}, err
	}
	var seg sandbox.SegmentInfo
	for _, s := range list.Segments {
		if s.Name == cohortName {
			seg = s
		}
	}
	if seg.ID == 0 {
		return seg, errors.New("the sandbox has no segment of the cohort")
	}
	var m sandbox.Members
	if err := d.api.sandboxJSON(ctx, http.MethodGet, "/sandbox/segments/"+strconv.FormatInt(seg.ID, 10)+"/members", nil, &m); err != nil {
		return seg, err
	}
	in := map[string]bool{}
	for _, id := range m.Members {
		in[id] = true
	}
	evaluated, err := d.members(ctx, run)
	if err != nil {
		return seg, err
	}
	return seg, errors.Join(differ("the system's own members", in, evaluated), differ("the demo's reckoning", in, d.data.expected()))
}

// skipped are the users the run left out, by number: they are in the cohort and
// can't be in the segment.
func (d *demo) skipped(ctx context.Context, run *cohortsyncv1.Run) (map[uint64]bool, error) {
	out := map[uint64]bool{}
	token := ""
	for {
		var resp cohortsyncv1.ListRunUsersResponse
		if err := d.api.call(ctx, http.MethodGet, run.GetName()+"/users?outcome=OUTCOME_SKIPPED&page_size=10000&page_token="+token, nil, &resp); err != nil {
			return nil, err
		}
		for _, u := range resp.GetUsers() {
			out[u.GetUserNo()] = true
		}
		if token = resp.GetNextPageToken(); token == "" {
			return out, nil
		}
	}
}

// members are the identifiers of the cohort's identified users now, without
// those the run left out.
func (d *demo) members(ctx context.Context, run *cohortsyncv1.Run) (map[string]bool, error) {
	skip, err := d.skipped(ctx, run)
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	token := ""
	for {
		var resp cohortsyncv1.ListMembersResponse
		if err := d.api.call(ctx, http.MethodGet, d.cohort+"/members?page_size=10000&page_token="+token, nil, &resp); err != nil {
			return nil, err
		}
		for _, m := range resp.GetMembers() {
			switch id := m.GetPartnerId(); {
			case !m.GetIdentified() || skip[m.GetUserNo()]:
			case id != "":
				out[id] = true
			default:
				out[m.GetDistinctId()] = true
			}
		}
		if token = resp.GetNextPageToken(); token == "" {
			return out, nil
		}
	}
}

func differ(what string, segment, want map[string]bool) error {
	missing, extra := 0, 0
	for id := range want {
		if !segment[id] {
			missing++
		}
	}
	for id := range segment {
		if !want[id] {
			extra++
		}
	}
	if missing+extra > 0 {
		return fmt.Errorf("the segment differs from %s: %d missing, %d too many", what, missing, extra)
	}
	return nil
}

func (d *demo) campaign(ctx context.Context) error {
	var list sandbox.Segments
	if err := d.api.sandboxJSON(ctx, http.MethodGet, "/sandbox/segments", nil, &list); err != nil {
		return err
	}
	var res sandbox.CampaignResult
	if err := d.api.sandboxJSON(ctx, http.MethodPost, "/sandbox/campaign", sandbox.Campaign{
		Segment: list.Segments[0].ID, Name: "Come back", ImportURL: "http://" + d.api.c.HTTPAddr + "/import",
		ProjectID: d.api.c.ProjectID, Username: d.api.c.ServiceAccount, Secret: d.api.c.ServiceSecret,
	}, &res); err != nil {
		return err
	}
	d.sum.CampaignEvents = res.Events
	d.say("campaign: %d events of %d users came back", res.Events, res.Members)
	return nil
}

func (d *demo) usage(ctx context.Context) error {
	var u ingestionv1.GetUsageResponse
	if err := d.api.call(ctx, http.MethodGet, d.api.project()+"/usage", nil, &u); err != nil {
		return err
	}
	d.sum.MTU, d.sum.MTUExemptEvents = u.GetMtu(), u.GetExemptEvents()
	if int(u.GetExemptEvents()) != d.sum.CampaignEvents {
		return fmt.Errorf("%d campaign events came back, %d are exempt from MTU", d.sum.CampaignEvents, u.GetExemptEvents())
	}
	d.say("MTU %d, %d events exempt", u.GetMtu(), u.GetExemptEvents())
	return nil
}
