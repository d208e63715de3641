package modeltest_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
	"github.com/go-json-experiment/json/jsontext"
	"google.golang.org/protobuf/types/known/timestamppb"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
	typev1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/type/v1"
)

// A view is everything a project shows, a line each; the model and the service
// must have equal views.

const columns = "n plan list name"

// probes are the ids to look up: all of them, but few of the many alike.
func (p *project) probes() (out []string) {
	for i, id := range sortedKeys(p.ids) {
		if !strings.HasPrefix(id, "many-") && !strings.HasPrefix(id, "fresh-") || i%40 == 0 {
			out = append(out, id)
		}
	}
	return append(out, "stranger", "null")
}

func (p *project) months() []string {
	m := map[string]bool{"2026-01": true, "2026-02": true}
	for _, e := range p.events {
		m[month(e.received)], m[month(e.time)] = true, true
	}
	return sortedKeys(m)
}

// view is what the model shows.
func (p *project) view(now int64) (out []string) {
	line := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	users, profiles := 0, 0
	did, identified, lists := map[*account]int{}, []int{}, []int{}
	for _, e := range p.events {
		id, insert, verdict := "", e.insert, "qualifying"
		props := clone(e.props)
		if e.imports {
			props["$import"] = true
		}
		if e.account != nil {
			if e.name == "View" || e.name == "E" {
				did[e.account.user()]++
			}
			id = e.account.user().first
			if e.arrival != id {
				props["$distinct_id_before_identity"], props["$is_reshuffled"] = e.arrival, true
			}
		}
		if e.generated {
			insert = "(generated)"
		}
		if e.rule != "" {
			verdict = "exempt:" + e.rule
		}
		line("event %q time %d insert %q id %q processed %d %s %s", e.name, e.time, insert, id, e.received, verdict, canonical(props))
	}
	for _, a := range p.accounts {
		if a.into != nil {
			continue
		}
		users++
		if a.profile != nil {
			identified = append(identified, a.n+1)
			if a.profile["list"] != nil {
				lists = append(lists, a.n+1)
			}
			profiles++
			line("profile %d %q updated %d %s", a.n+1, a.first, a.updated, rounded(a.profile))
		}
		for _, partner := range partnerProperties[:2] {
			state := "-"
			if p.ids[a.first].account.user() != a {
				state = "conflict" // another user's id by now
			}
			if v, ok := partnerID(a.profile, partner); ok {
				switch l := p.ids[v]; {
				case !possibleID(v):
					state = "invalid"
				case l == nil || l.account.user() != a:
					state = "conflict"
				default:
					state = "id " + v
				}
			}
			m := fmt.Sprintf("member %d %q identified %v %s %s", a.n+1, a.first, a.profile != nil, partner, state)
			for _, c := range strings.Fields(columns) {
				v, ok := a.profile[c]
				if ok {
					m += " " + canonical(v)
				} else {
					m += " absent"
				}
			}
			out = append(out, m)
		}
	}
	var often []int
	for _, a := range p.accounts {
		if did[a] >= 2 {
			often = append(often, a.n+1)
		}
	}
	line("cohort of users who did it twice %v", often)
	line("cohort of users with a list %v", lists)
	line("cohort of identified users %v", identified)
	out = append(out, p.selected(time.UnixMilli(now))...)
	for _, id := range p.probes() {
		l := p.ids[id]
		if l == nil {
			line("cluster of %q: unknown", id)
			continue
		}
		u := l.account.user()
		ids := p.idsOf(u)
		for i, x := range ids {
			ids[i] = fmt.Sprintf("%q %s %d", x, p.ids[x].reason, p.ids[x].at)
		}
		slices.Sort(ids)
		line("cluster of %q: %d %q identified %v: %s", id, u.n+1, u.first, u.profile != nil, strings.Join(ids, ", "))
		if u.profile != nil {
			line("profile of %q: %d", id, u.n+1)
		}
		if f := p.former(id); f != nil {
			u = f
		}
		line("literally %q: %d %q with %d ids", id, u.n+1, u.first, len(p.idsOf(u)))
		if u.profile != nil {
			line("literal profile of %q: %d", id, u.n+1)
		}
	}
	line("statistics: %d events, %d duplicates, %d profiles, %d users", len(p.events), p.duplicates, profiles, users)
	for _, k := range sortedKeys(p.warnings) {
		line("warning %s %d", k, p.warnings[k])
	}
	for _, m := range p.months() {
		line("usage %+v", p.usage(m, now))
	}
	return out
}

// view is what the service shows of a project; p says only what to ask for.
func (v *service) view(p *project) (out []string, err error) {
	ctx := context.Background()
	parent := fmt.Sprintf("projects/%d", p.id)
	line := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }

	events := &sink[ingestionv1.ExportEventsResponse]{}
	if err := v.Data.ExportEvents(&ingestionv1.ExportEventsRequest{Parent: parent, FromDate: "1970-01-01", ToDate: "2100-01-01"}, events); err != nil {
		return nil, err
	}
	generated := map[string]bool{}
	for _, e := range p.events {
		if !e.generated {
			generated[e.insert] = true
		}
	}
	for _, m := range events.got {
		for _, e := range m.GetEvents() {
			insert, props := e.GetInsertId(), e.GetPropertiesJson()
			if !generated[insert] {
				insert = "(generated)"
			}
			if o, ok := decode(props); ok && jsontext.Value(props).IsValid() {
				if m, ok := o.(map[string]any); ok && m["$failure_description"] != nil && m["$failure_description"] != "" {
					m["$failure_description"] = true // there is one; its words are free
				}
				props = canonical(o)
			} else {
				props = "NOT JSON: " + props
			}
			line("event %q time %d insert %q id %q processed %d %s %s", e.GetEvent(), e.GetTime().AsTime().UnixMilli(), insert, e.GetDistinctId(), e.GetProcessingTime().AsTime().UnixMilli(), e.GetMtuVerdict(), props)
		}
	}
	token := ""
	for {
		r, err := v.Data.ListProfiles(ctx, &ingestionv1.ListProfilesRequest{Parent: parent, PageSize: 7, PageToken: token})
		if err != nil {
			return nil, err
		}
		for _, x := range r.GetProfiles() {
			line("profile %d %q updated %d %s", x.GetUserNo(), x.GetDistinctId(), x.GetUpdateTime().AsTime().UnixMilli(), rounded(x.GetProperties().AsMap()))
		}
		if token = r.GetNextPageToken(); token == "" {
			break
		}
	}
	all := roaring64.New()
	all.AddRange(1, uint64(len(p.accounts))+10) //nolint:gosec // a count
	set, err := all.ToBytes()
	if err != nil {
		return nil, err
	}
	for _, partner := range partnerProperties[:2] {
		members := &sink[ingestionv1.ResolveMembersResponse]{}
		if err := v.Evaluation.ResolveMembers(&ingestionv1.ResolveMembersRequest{Parent: parent, Roaring: set, PartnerProperty: partner, Columns: strings.Fields(columns)}, members); err != nil {
			return nil, err
		}
		for _, r := range members.got {
			for _, m := range r.GetMembers() {
				state := "-"
				switch {
				case m.GetPartnerIdInvalid():
					state = "invalid"
				case m.GetPartnerIdConflict():
					state = "conflict"
				case m.GetPartnerId() != "":
					state = "id " + m.GetPartnerId()
				}
				s := fmt.Sprintf("member %d %q identified %v %s %s", m.GetUserNo(), m.GetDistinctId(), m.GetIdentified(), partner, state)
				for _, c := range m.GetColumns() {
					x, ok := decode(string(c))
					if ok {
						s += " " + canonical(x)
					} else {
						s += " absent"
					}
				}
				out = append(out, s)
			}
		}
	}
	cohorts, err := v.cohorts(parent)
	if err != nil {
		return nil, err
	}
	out = append(out, cohorts...)
	selected, err := v.selected(p)
	if err != nil {
		return nil, err
	}
	out = append(out, selected...)
	for _, id := range p.probes() {
		r, err := v.Identity.LookupIdentity(ctx, &ingestionv1.LookupIdentityRequest{Parent: parent, DistinctId: id})
		if err != nil {
			line("cluster of %q: unknown", id)
		} else {
			var ids []string
			for _, x := range r.GetIds() {
				ids = append(ids, fmt.Sprintf("%q %s %d", x.GetId(), strings.TrimPrefix(x.GetReason().String(), "REASON_"), x.GetLinkTime().AsTime().UnixMilli()))
			}
			slices.Sort(ids)
			line("cluster of %q: %d %q identified %v: %s", id, r.GetUserNo(), r.GetCanonicalId(), r.GetIdentified(), strings.Join(ids, ", "))
		}
		if g, err := v.Data.GetProfile(ctx, &ingestionv1.GetProfileRequest{Parent: parent, DistinctId: id}); err == nil {
			line("profile of %q: %d", id, g.GetProfile().GetUserNo())
		}
		if r, err := v.Identity.LookupIdentity(ctx, &ingestionv1.LookupIdentityRequest{Parent: parent, DistinctId: id, IgnoreAlias: true}); err == nil {
			line("literally %q: %d %q with %d ids", id, r.GetUserNo(), r.GetCanonicalId(), len(r.GetIds()))
		}
		if g, err := v.Data.GetProfile(ctx, &ingestionv1.GetProfileRequest{Parent: parent, DistinctId: id, IgnoreAlias: true}); err == nil {
			line("literal profile of %q: %d", id, g.GetProfile().GetUserNo())
		}
	}
	st, err := v.Data.GetDataStatistics(ctx, &ingestionv1.GetDataStatisticsRequest{Parent: parent})
	if err != nil {
		return nil, err
	}
	line("statistics: %d events, %d duplicates, %d profiles, %d users", st.GetEvents(), st.GetDuplicates(), st.GetProfiles(), st.GetUsers())
	w, err := v.Data.ListWarnings(ctx, &ingestionv1.ListWarningsRequest{Parent: parent})
	if err != nil {
		return nil, err
	}
	for _, x := range w.GetWarnings() {
		line("warning %s %d", x.GetKind(), x.GetCount())
	}
	for _, m := range p.months() {
		u, err := v.Usage.GetUsage(ctx, &ingestionv1.GetUsageRequest{Parent: parent, Month: m})
		if err != nil {
			return nil, err
		}
		line("usage %+v", usage{
			Month: u.GetMonth(), MTU: u.GetMtu(), Users: u.GetUsers(), Qualifying: u.GetQualifyingEvents(), Exempt: u.GetExemptEvents(),
			ExemptOnly: u.GetExemptOnlyUsers(), Guardrail: u.GetGuardrail(), ByRule: u.GetExemptByRule(), BySource: u.GetEventsBySource(),
		})
	}
	return out, nil
}

// cohorts reads what cohorts are made of: an event done twice, a property that is
// set, and who is identified.
func (v *service) cohorts(parent string) (out []string, err error) {
	twice := 2.0
	answers := &sink[ingestionv1.EvaluateLeavesResponse]{}
	req := &ingestionv1.EvaluateLeavesRequest{Parent: parent, AsOf: timestamppb.New(v.now.Add(time.Hour)), Leaves: []*ingestionv1.Leaf{
		{Leaf: &ingestionv1.Leaf_Behavior{Behavior: &typev1.BehaviorLeaf{Events: []string{"View", "E"}, Threshold: &twice}}},
		{Leaf: &ingestionv1.Leaf_Property{Property: &typev1.PropertyLeaf{Filter: &typev1.PropertyFilter{Property: "list", Type: typev1.ValueType_VALUE_TYPE_STRING, Operator: typev1.PropertyOperator_PROPERTY_OPERATOR_IS_SET}}}},
	}}
	if err := v.Evaluation.EvaluateLeaves(req, answers); err != nil {
		return nil, err
	}
	for i, name := range []string{"users who did it twice", "users with a list", "identified users"} {
		set := answers.got[i].GetLeaf().GetUsers()
		if i == 2 {
			set = answers.got[i].GetIdentified()
		}
		bm := roaring64.New()
		if err := bm.UnmarshalBinary(set.GetRoaring()); err != nil {
			return nil, err
		}
		out = append(out, fmt.Sprintf("cohort of %s %v", name, bm.ToArray()))
	}
	return out, nil
}

// difference is the first line that one has and the other has not, or "".
func difference(want, got []string) string {
	n := map[string]int{}
	for _, s := range got {
		n[s]++
	}
	var lacks, extra []string
	for _, s := range want {
		if n[s]--; n[s] < 0 {
			lacks = append(lacks, s)
		}
	}
	for _, s := range got {
		if n[s] > 0 {
			n[s]--
			extra = append(extra, s)
		}
	}
	if len(lacks)+len(extra) == 0 {
		return ""
	}
	show := func(list []string) string {
		if len(list) == 0 {
			return "(nothing)"
		}
		return list[0]
	}
	first := show(lacks)
	near := show(extra) // of the same kind, if there is one
	for _, s := range extra {
		if a, b := strings.Fields(first), strings.Fields(s); len(a) > 2 && len(b) > 2 && a[0] == b[0] && a[1] == b[1] && a[2] == b[2] {
			near = s
			break
		}
	}
	return fmt.Sprintf("%d lines differ\n  model:   %s\n  service: %s", len(lacks)+len(extra), first, near)
}
