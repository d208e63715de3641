package server

import (
	"bytes"
	"context"
	"encoding/csv"
	"strconv"
	"time"

	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/ledger"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/mtu"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/usage"
	"github.com/cohortbridge/cohortbridge/services/ingestion/internal/warehouse"
)

// Usage serves UsageService.
type Usage struct {
	ingestionv1.UnimplementedUsageServiceServer
	// Reporter reads figures, Jobs judges stored events again.
	Reporter *usage.Reporter
	Jobs     *usage.Reclassifier
	// Ledger has the jobs.
	Ledger ledger.Ledger
	// Rules are the rules that judge events now.
	Rules *mtu.Rules
}

// GetUsage reports a month.
func (s *Usage) GetUsage(ctx context.Context, req *ingestionv1.GetUsageRequest) (*ingestionv1.GetUsageResponse, error) {
	id, err := projectID(req.GetParent())
	if err != nil {
		return nil, err
	}
	m, err := s.Reporter.Month(ctx, id, req.GetMonth())
	if err != nil {
		return nil, err
	}
	return s.month(m), nil
}

func (s *Usage) month(m *usage.Month) *ingestionv1.GetUsageResponse {
	return &ingestionv1.GetUsageResponse{
		Month: m.Name, Mtu: m.MTU, Users: m.Users, QualifyingEvents: m.Qualifying, ExemptEvents: m.Exempt, ExemptByRule: m.ExemptByRule,
		ExemptOnlyUsers: m.ExemptOnly, RulesVersion: strconv.Itoa(s.Rules.Version), Guardrail: m.Guarded, GuardrailEvents: m.Guardrail,
		EventsBySource: m.BySource, Closed: m.Closed,
	}
}

// ListUsage reports months, oldest first.
func (s *Usage) ListUsage(ctx context.Context, req *ingestionv1.ListUsageRequest) (*ingestionv1.ListUsageResponse, error) {
	list, err := s.months(ctx, req.GetParent(), req.GetUntil(), req.GetMonths())
	if err != nil {
		return nil, err
	}
	out := &ingestionv1.ListUsageResponse{}
	for _, m := range list {
		out.Months = append(out.Months, s.month(m))
	}
	return out, nil
}

func (s *Usage) months(ctx context.Context, parent, until string, n int32) ([]*usage.Month, error) {
	id, err := projectID(parent)
	if err != nil {
		return nil, err
	}
	return s.Reporter.Months(ctx, id, until, int(n))
}

// ExportUsage is ListUsage as CSV.
func (s *Usage) ExportUsage(ctx context.Context, req *ingestionv1.ExportUsageRequest) (*httpbody.HttpBody, error) {
	list, err := s.months(ctx, req.GetParent(), req.GetUntil(), req.GetMonths())
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := csv.NewWriter(&b)
	_ = w.Write([]string{"month", "mtu", "users", "qualifying_events", "exempt_events", "exempt_only_users", "guardrail_events", "guardrail", "closed"}) // a buffer never fails
	for _, m := range list {
		n := func(v int64) string { return strconv.FormatInt(v, 10) }
		_ = w.Write([]string{m.Name, n(m.MTU), n(m.Users), n(m.Qualifying), n(m.Exempt), n(m.ExemptOnly), n(m.Guardrail), strconv.FormatBool(m.Guarded), strconv.FormatBool(m.Closed)})
	}
	w.Flush()
	return &httpbody.HttpBody{ContentType: "text/csv; charset=utf-8", Data: b.Bytes()}, nil
}

// BreakDownUsage splits a month.
func (s *Usage) BreakDownUsage(ctx context.Context, req *ingestionv1.BreakDownUsageRequest) (*ingestionv1.BreakDownUsageResponse, error) {
	id, err := projectID(req.GetParent())
	if err != nil {
		return nil, err
	}
	month, groups, err := s.Reporter.BreakDown(ctx, id, req.GetMonth(), warehouse.GroupBy(req.GetBy())) //nolint:gosec // validated enum with the same numbers
	if err != nil {
		return nil, err
	}
	out := &ingestionv1.BreakDownUsageResponse{Month: month}
	for _, g := range groups {
		out.Groups = append(out.Groups, &ingestionv1.UsageGroup{Key: g.Key, Users: g.Users, QualifyingEvents: g.Qualifying, ExemptEvents: g.Exempt})
	}
	return out, nil
}

// ExplainUser says whether a user counted, and why.
func (s *Usage) ExplainUser(ctx context.Context, req *ingestionv1.ExplainUserRequest) (*ingestionv1.ExplainUserResponse, error) {
	id, err := projectID(req.GetParent())
	if err != nil {
		return nil, err
	}
	e, err := s.Reporter.Explain(ctx, id, req.GetMonth(), req.GetDistinctId(), req.GetIgnoreAlias())
	if err != nil {
		return nil, err
	}
	out := &ingestionv1.ExplainUserResponse{Month: e.Month, CanonicalId: e.CanonicalID, Counted: e.First != nil, Explanation: e.Text, QualifyingEvents: e.Qualifying, ExemptByRule: e.ExemptByRule, Guardrail: e.Guarded, MonthBasis: ingestionv1.ExplainUserResponse_MONTH_BASIS_PROCESSING_TIME}
	if e.ByEventTime {
		out.MonthBasis = ingestionv1.ExplainUserResponse_MONTH_BASIS_EVENT_TIME
	}
	if f := e.First; f != nil {
		out.FirstQualifyingEvent = &ingestionv1.CountedEvent{
			Event: f.Name, Time: timestamppb.New(time.UnixMilli(f.TimeMS)), ProcessingTime: timestamppb.New(time.UnixMilli(f.ReceivedMS)), Source: f.Source, RulesVersion: strconv.Itoa(int(f.RulesVersion)),
		}
	}
	return out, nil
}

// GetOrganizationUsage adds up all projects.
func (s *Usage) GetOrganizationUsage(ctx context.Context, req *ingestionv1.GetOrganizationUsageRequest) (*ingestionv1.GetOrganizationUsageResponse, error) {
	month, total, parts, err := s.Reporter.Organization(ctx, req.GetMonth())
	if err != nil {
		return nil, err
	}
	out := &ingestionv1.GetOrganizationUsageResponse{Month: month, Mtu: total}
	for _, p := range parts {
		out.Projects = append(out.Projects, &ingestionv1.ProjectUsage{Project: "projects/" + strconv.FormatInt(p.ProjectID, 10), Usage: s.month(p.Month)})
	}
	return out, nil
}

// ListMtuRules returns the rules that exempt events.
func (s *Usage) ListMtuRules(context.Context, *ingestionv1.ListMtuRulesRequest) (*ingestionv1.ListMtuRulesResponse, error) {
	out := &ingestionv1.ListMtuRulesResponse{Version: strconv.Itoa(s.Rules.Version)}
	for _, r := range s.Rules.Rules {
		out.Rules = append(out.Rules, &ingestionv1.MtuRule{Id: r.ID, Source: r.Source, Events: append(append([]string{}, r.Events...), r.Notes...), MarkerProperty: r.Marker, MarkerValues: r.Values})
	}
	return out, nil
}
