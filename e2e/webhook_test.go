package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/cohortbridge/cohortbridge/e2e/harness"
	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	registryv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/registry/v1"
)

// hook sends what Mixpanel's custom webhook sends.
type hook struct {
	t    *testing.T
	c    *harness.Client
	path string
}

// page sends one page of a session and checks that the answer has the documented form.
func (h *hook) page(action, session string, page, of int, ids ...string) {
	h.t.Helper()
	members := make([]map[string]any, len(ids))
	for i, id := range ids {
		members[i] = map[string]any{"mixpanel_distinct_id": id, "email": id + "@example.org", "first_name": "First " + id, "last_name": "", "phone_number": "+4915112345678", "plan": "pro"}
	}
	b, err := json.Marshal(map[string]any{"action": action, "parameters": map[string]any{
		"mixpanel_project_id": "7", "mixpanel_cohort_id": "42", "mixpanel_cohort_name": "Lapsed", "mixpanel_cohort_description": "from Mixpanel",
		"mixpanel_session_id": session, "page_info": map[string]int{"total_pages": of, "page_count": page}, "members": members,
	}})
	if err != nil {
		h.t.Fatal(err)
	}
	a := h.c.MustDo(h.t, "POST", h.path, b, harness.JSONHead)
	if want := fmt.Sprintf(`{"action":%q,"status":"success"}`, action); a.Status != 200 || string(a.Body) != want {
		h.t.Fatalf("%s page %d: HTTP %d %s, want %s", action, page, a.Status, a.Body, want)
	}
}

func (h *hook) refused(what, body string, status int, mentions string) {
	h.t.Helper()
	a := h.c.MustDo(h.t, "POST", h.path, []byte(body), harness.JSONHead)
	var got struct {
		Status string
		Error  struct {
			Message string
			Code    int
		}
	}
	if err := json.Unmarshal(a.Body, &got); err != nil || a.Status != status || got.Status != "failure" || got.Error.Code != status || !strings.Contains(got.Error.Message, mentions) {
		h.t.Errorf("%s: HTTP %d %s, want a failure of %d that mentions %q", what, a.Status, a.Body, status, mentions)
	}
}

func TestACohortThatMixpanelSendsReachesCleverTapAsAnyOther(t *testing.T) {
	p := harness.Standalone(t, t.TempDir(), "--sandbox-addr", "127.0.0.1:0")
	c := p.Client(t)
	h := &hook{t, c, "/api/webhooks/mixpanel/" + p.Creds.ProjectID}

	h.page("members", "s1", 2, 3, "c", "d")
	h.page("members", "s1", 2, 3, "c", "d")
	h.page("members", "s1", 3, 3, "e")
	list, err := c.Cohorts().ListCohorts(t.Context(), &cohortsyncv1.ListCohortsRequest{Parent: c.Project})
	if err != nil || len(list.GetCohorts()) != 1 {
		t.Fatalf("cohorts: %v, %v", list, err)
	}
	cohort := list.GetCohorts()[0]
	members := func() string {
		t.Helper()
		resp, err := c.Cohorts().ListMembers(t.Context(), &cohortsyncv1.ListMembersRequest{Parent: cohort.GetName()})
		if err != nil {
			t.Fatal(err)
		}
		var ids []string
		for _, m := range resp.GetMembers() {
			ids = append(ids, m.GetDistinctId())
		}
		return strings.Join(ids, " ")
	}
	if got := members(); got != "" || cohort.GetSummary() != "kept by a webhook" {
		t.Errorf("before all pages are there: members %q, %q", got, cohort.GetSummary())
	}
	h.page("members", "s1", 1, 3, "a", "b")
	if got := members(); len(got) != len("a b c d e") {
		t.Errorf("members %q", got)
	}
	if prof := c.Profile(t, "a"); prof["$email"] != "a@example.org" || prof["$first_name"] != "First a" || prof["plan"] != "pro" || prof["$last_name"] != nil {
		t.Errorf("profile: %v", prof)
	}

	conn := c.Connector(t, p.Creds.SandboxAddr, registryv1.CleverTap_CHANNEL_PARTNER)
	sync, run := c.Sync(t, cohort.GetName(), conn, cohortsyncv1.Sync_MODE_DYNAMIC)
	c.MustWatch(t, run)
	harness.SegmentIs(t, p.Creds.SandboxAddr, "Lapsed", map[string]bool{"a": true, "b": true, "c": true, "d": true, "e": true})

	h.page("add_members", "s2", 1, 1, "f")
	h.page("remove_members", "s2", 1, 1, "a", "b")
	h.page("add_members", "s3", 1, 1)
	h.page("remove_members", "s3", 1, 1)
	c.Run(t, sync)
	harness.SegmentIs(t, p.Creds.SandboxAddr, "Lapsed", map[string]bool{"c": true, "d": true, "e": true, "f": true})

	valid := `{"action":"add_members","parameters":{"mixpanel_project_id":"7","mixpanel_cohort_id":"42","mixpanel_session_id":"s9","page_info":{"total_pages":2,"page_count":1},"members":[]}}`
	for what, b := range map[string]struct {
		body   string
		status int
		say    string
	}{
		"HTML":              {"<html>", 400, "no message"},
		"nothing":           {"", 400, "no message"},
		"unknown action":    {strings.Replace(valid, "add_members", "sub_members", 1), 400, "action"},
		"page beyond total": {strings.Replace(valid, `"page_count":1`, `"page_count":3`, 1), 400, "page_count"},
		"page 0":            {strings.Replace(valid, `"page_count":1`, `"page_count":0`, 1), 400, "page_count"},
		"no session":        {strings.Replace(valid, `"s9"`, `""`, 1), 400, "mixpanel_session_id"},
		"no cohort id":      {strings.Replace(valid, `"42"`, `""`, 1), 400, "mixpanel_cohort_id"},
		"member without id": {strings.Replace(valid, `"members":[]`, `"members":[{"email":"zoe@example.org"}]`, 1), 400, "members[0].mixpanel_distinct_id"},
		"members no list":   {strings.Replace(valid, `"members":[]`, `"members":"all"`, 1), 400, "no message"},
	} {
		h.refused(what, b.body, b.status, b.say)
	}
	if a := c.MustDo(t, "POST", h.path, []byte(valid), map[string]string{"Authorization": ""}); a.Status != 401 || !strings.Contains(string(a.Body), `"code":401`) {
		t.Errorf("without a credential: HTTP %d %s", a.Status, a.Body)
	}
	if a := c.MustDo(t, "POST", "/api/webhooks/mixpanel/999", []byte(valid), harness.JSONHead); a.Status != 403 && a.Status != 404 {
		t.Errorf("another project: HTTP %d %s", a.Status, a.Body)
	}
	if got := members(); len(got) != len("c d e f") {
		t.Errorf("refused messages changed the members: %q", got)
	}

	if _, err := c.Syncs().DeleteSync(t.Context(), &cohortsyncv1.DeleteSyncRequest{Name: sync}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Cohorts().DeleteCohort(t.Context(), &cohortsyncv1.DeleteCohortRequest{Name: cohort.GetName()}); err != nil {
		t.Fatal(err)
	}
	h.refused("a difference to a cohort that was deleted", strings.Replace(valid, `"total_pages":2`, `"total_pages":1`, 1), 404, "deleted")
	h.page("members", "s10", 1, 1, "z")
}
