package ingestion_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	ingestionv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/ingestion/v1"
)

// verdicts are the MTU verdicts of the exported events by insert id.
func (h *harness) verdicts(projectID int64) map[string]string {
	h.t.Helper()
	out := map[string]string{}
	for _, e := range h.export(projectID) {
		out[e.GetInsertId()] = e.GetMtuVerdict()
	}
	return out
}

// otherCase is a text in capital letters, one that is already in small ones.
func otherCase(s string) string {
	if up := strings.ToUpper(s); up != s {
		return up
	}
	return strings.ToLower(s)
}

// The partners' lists as Mixpanel's partner pages have them.
func TestEachPartnersExemptEventsMakeNoMonthlyUser(t *testing.T) {
	for partner, names := range map[string]string{
		"airship":    "Airship Email Bounce|Airship Email Delay|Airship Email Delivery|Airship In-App Message Display|Airship Rich Delivery|Airship Send|Airship Send Rejected|Airship Unsubscribe|Airship SMS Delivered|Airship Email Injection",
		"braze":      "Canvas Entry|Email Send|Email Delivery|Email Bounce|Email Soft Bounce|Email Mark As Spam|Email Unsubscribe|Push Notification Send|Push Notification Bounce|Webhook Send|SMS Send|SMS Delivery|SMS Delivery Failure|SMS Rejection|SMS Send to Carrier",
		"clevertap":  "Notification Sent|Notification Viewed|Notification Clicked|Push Impressions|Notification Replied|Push Unregistered|Control Group|Channel Unsubscribed|Reachable By|Notification Delivered|AB Experiment Rendered|AB Experiment Stopped|AB Experiment Rolled Out|Geocluster Entered|Geocluster Exited|Reply Sent|App Uninstalled|Webhook Delivered|State Transitioned|UTM Visited",
		"iterable":   "emailSend|emailBounce|emailComplaint|emailSendSkip|emailSubscribe|emailUnSubscribe|hostedUnsubscribeClick|inAppSend|inAppSendSkip|pushBounce|pushSend|pushSendSkip|smsBounce|smsReceived|smsSend|smsSendSkip|webPushSendSkip",
		"leanplum":   "(Leanplum) Campaign Enter|(Leanplum) Push Notification Send|(Leanplum) Push Notification Bounce|(Leanplum) Email Send|(Leanplum) Email Delivered|(Leanplum) Email Bounce|(Leanplum) Email Marked as spam|(Leanplum) Email Unsubscribed|(Leanplum) A/B test",
		"mailchimp":  "Mailchimp - Opened Campaign|Mailchimp - Clicked Campaign Url|Mailchimp - Sent To|Mailchimp - Unsubscribed|Mailchimp - Bounced",
		"moengage":   "Card Sent|Card Delivered|Connector Sent|Email Sent|Email Deferred|Email Delivered|Email Dropped|Email Bounced|Email Soft Bounced|Notification Received Android|Notification Sent iOS|NOTIFICATION_RECEIVED_IOS_MOE|Notification Received Web|SMS Sent|SMS Delivered|User Entered Flow|User Exited Flow",
		"onesignal":  "$app_open|$campaign_delivery|$campaign_received|$campaign_open",
		"xtremepush": "xp.message.send.batch|xp.message.delivery|xp.message.bounce|xp.message.open|xp.message.click|xp.message.unsubscribe|xp.message.complaint",
	} {
		t.Run(partner, func(t *testing.T) {
			h := newHarness(t)
			marker, wrong := "$source", "$partner_id"
			if partner == "braze" {
				marker, wrong = wrong, marker
			}
			want := map[string]string{}
			var list []props
			for i, name := range strings.Split(names, "|") {
				for kind, c := range map[string]struct {
					name   string
					more   props
					exempt bool
				}{
					"marked":            {name, props{marker: partner}, true},
					"marked in capital": {name, props{marker: strings.ToUpper(partner)}, true},
					"unmarked":          {name, nil, false},
					"of another":        {name, props{marker: "our own tool"}, false},
					"by another marker": {name, props{wrong: partner}, false},
					"by another case":   {otherCase(name), props{marker: partner}, false},
				} {
					if kind == "by another case" && c.name == name {
						continue // a name without letters has one case
					}
					id := fmt.Sprintf("%d-%s", i, strings.ReplaceAll(kind, " ", "-"))
					want[id] = "qualifying"
					switch {
					case name == "$campaign_delivery" || name == "$campaign_received": // on the general list too
						if c.name == name {
							want[id] = "exempt:general"
						}
					case c.exempt:
						want[id] = "exempt:" + partner
					}
					list = append(list, ev(c.name, start, "u-"+kind, id, c.more))
				}
			}
			h.importStrict(1, list...)
			got := h.verdicts(1)
			for id, verdict := range want {
				if got[id] != verdict {
					t.Errorf("event %s has verdict %q, want %q", id, got[id], verdict)
				}
			}
			// Those who were only sent something were reached, and do not count.
			if u := h.month(1, ""); u.GetMtu() != 4 || u.GetExemptOnlyUsers() != 2 {
				t.Errorf("usage %v", u)
			}
		})
	}
}

func TestTheGeneralListIsExemptByNameAlone(t *testing.T) {
	for kind, names := range map[string]string{
		"system events":         "$identify|$create_alias|$merge|$opt_in|$mp_session_record|$experiment_started",
		"old messaging feature": "$campaign_delivery|$campaign_received|$campaign_bounced|$campaign_marked_spam|$message_suppressed|$unsubscribe|$journey_entered",
		"mailchimp":             "Mailchimp Campaign - Open|Mailchimp Campaign - Click|Mailchimp Campaign - Sent|Mailchimp Campaign - Unsubscribed|Mailchimp Campaign - Bounce",
	} {
		t.Run(kind, func(t *testing.T) {
			h := newHarness(t)
			var list []props
			for i, name := range strings.Split(names, "|") {
				list = append(list, ev(name, start, "u", fmt.Sprint("g", i), nil), ev(name, start, "u", fmt.Sprint("m", i), props{"$source": "anything"}))
			}
			h.importStrict(1, list...)
			for id, verdict := range h.verdicts(1) {
				if verdict != "exempt:general" {
					t.Errorf("event %s has verdict %s", id, verdict)
				}
			}
			if u := h.month(1, ""); u.GetMtu() != 0 || u.GetExemptOnlyUsers() != 1 || u.GetGuardrailEvents() != 0 {
				t.Errorf("usage %v", u)
			}
		})
	}
}

// monthRule is what is sent to a project in a month, and what it counts.
type monthRule struct {
	name     string
	events   []props
	profiles []props
	// want is "MTU users qualifying exempt guardrail-events".
	want string
}

func TestEachRuleOfAMonthsCount(t *testing.T) {
	thousand := func(n int, id string) (list []props) {
		for i := range n {
			list = append(list, ev("E", start, id, fmt.Sprint("t", i), nil))
		}
		return list
	}
	for _, r := range []monthRule{
		{"a user with a qualifying event", []props{one("a", "u", nil)}, nil, "1 1 1 0 1"},
		{"many events of a user", thousand(50, "u"), nil, "1 1 50 0 50"},
		{"several devices of a user", []props{one("a", "", props{"$device_id": "D", "$user_id": "u"}), one("b", "", props{"$device_id": "E", "$user_id": "u"}), one("c", "", props{"$device_id": "D"})}, nil, "1 1 3 0 3"},
		{"an anonymous visitor", []props{one("a", "$device:D", nil)}, nil, "1 1 1 0 1"},
		{"an update of a profile", nil, []props{set("u", props{"n": 1}), {"$distinct_id": "u", "$add": props{"n": 1}}, {"$distinct_id": "u", "$delete": ""}}, "0 0 0 0 0"},
		{"more profiles than users", []props{one("a", "u", nil)}, []props{set("u", props{"n": 1}), set("v", props{"n": 1}), set("w", props{"n": 1})}, "1 1 1 0 1"},
		{"an event of nobody", []props{ev("E", start, "", "a", props{"distinct_id": ""})}, nil, "1 0 1 0 1"},
		{"an event to be ignored", []props{one("a", "u", props{"$ignore": true})}, nil, "0 0 0 0 0"},
		{"heatmap events", []props{ev("$mp_click", start, "u", "a", nil), ev("$mp_web_page_view", start, "v", "b", nil)}, nil, "2 2 2 0 2"},
		{"an opened message of a partner counts in the guardrail", []props{ev("$campaign_open", start, "u", "a", props{"$source": "onesignal"})}, nil, "1 0 0 1 1"},
		{"an opened message of nobody's qualifies", []props{ev("$campaign_open", start, "u", "a", nil)}, nil, "1 1 1 0 1"},
		{"other exempt events do not", []props{one("a", "u", nil), ev("Notification Viewed", start, "u", "b", props{"$source": "clevertap"}), ev("$opt_in", start, "v", "c", nil)}, nil, "1 1 1 2 1"},
		{"1000 events of a user", thousand(1000, "u"), nil, "1 1 1000 0 1000"},
		{"1001 events of a user", thousand(1001, "u"), nil, "2 1 1001 0 1001"},
	} {
		t.Run(r.name, func(t *testing.T) {
			h := newHarness(t)
			if len(r.events) > 0 {
				h.importStrict(1, r.events...)
			}
			if len(r.profiles) > 0 {
				h.engage(1, r.profiles...)
			}
			h.importStrict(2, one("other", "u", nil)) // another project's month is another
			u := h.month(1, "")
			if got := fmt.Sprint(u.GetMtu(), u.GetUsers(), u.GetQualifyingEvents(), u.GetExemptEvents(), u.GetGuardrailEvents()); got != r.want || u.GetGuardrail() != (u.GetMtu() > u.GetUsers()) {
				t.Errorf("counted %s, guardrail %v, want %s", got, u.GetGuardrail(), r.want)
			}
			if u := h.month(2, ""); u.GetMtu() != 1 || u.GetGuardrail() {
				t.Errorf("the other project: %v", u)
			}
		})
	}
}

func TestAMonthBeginsAndEndsAtMidnightUTC(t *testing.T) {
	h := newHarness(t)
	h.now.Store(time.Date(2026, 3, 31, 23, 59, 59, 999_000_000, time.UTC).UnixMilli())
	h.importStrict(1, ev("E", h.clock(), "march", "a", nil))
	h.tick(time.Millisecond)
	h.importStrict(1, ev("E", h.clock(), "april", "b", nil), ev("E", h.clock().Add(-time.Second), "late", "c", nil))
	for _, byEvent := range []bool{false, true} {
		h.reg.projects[1].MTU.ByEventTime = byEvent
		want := map[string]int64{"2026-03": 1, "2026-04": 2}
		if byEvent {
			want = map[string]int64{"2026-03": 2, "2026-04": 1}
		}
		for month, n := range want {
			if u := h.month(1, month); u.GetMtu() != n {
				t.Errorf("%s by event time %v: %v, want %d", month, byEvent, u, n)
			}
		}
	}
}

// The list shows the entries that are no events, and nothing of other partners.
func TestTheGeneralListHasEntriesThatAreNoEvents(t *testing.T) {
	h := newHarness(t)
	r, err := h.use.ListMtuRules(t.Context(), &ingestionv1.ListMtuRulesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, rule := range r.GetRules() {
		ids = append(ids, rule.GetId())
		if rule.GetId() != "general" {
			continue
		}
		for _, want := range []string{"Updates to user profiles", "Warehouse Mirror event updates", "Warehouse Mirror profile updates"} {
			if !slices.Contains(rule.GetEvents(), want) {
				t.Errorf("the general list lacks %q", want)
			}
		}
	}
	slices.Sort(ids)
	if got := strings.Join(ids, " "); got != "airship braze clevertap general iterable leanplum mailchimp moengage onesignal xtremepush" {
		t.Errorf("rules %s", got)
	}
}
