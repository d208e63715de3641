package sandbox

import (
	"net/http"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// maxMembers is the page size of Mixpanel's cohort messages
// (https://docs.mixpanel.com/docs/cohort-sync/webhooks).
const maxMembers = 1000

// keptUnread bounds the messages kept unread for a user.
const keptUnread = 4

// keptSessions bounds the full exports that are remembered.
const keptSessions = 1000

// session is a full export whose pages come one by one, in any order. The
// segment changes when the last page is there: half a list must not look like
// people leaving.
type session struct {
	pages   map[int]bool
	members map[string]struct{}
	done    bool
	started time.Time
}

type partnerMessage struct {
	Action     string `json:"action"`
	Parameters struct {
		ProjectID string `json:"mixpanel_project_id"`
		CohortID  string `json:"mixpanel_cohort_id"`
		Name      string `json:"mixpanel_cohort_name"`
		Session   string `json:"mixpanel_session_id"`
		PageInfo  struct {
			Total int `json:"total_pages"`
			Page  int `json:"page_count"`
		} `json:"page_info"`
		Members []jsontext.Value `json:"members"`
	} `json:"parameters"`
}

// partner takes Mixpanel's cohort messages and makes partner segments of them,
// with a Partner Sync event for each user that came or went.
func (s *Sandbox) partner(a *account, w http.ResponseWriter, r *http.Request) {
	var m partnerMessage
	if err := json.UnmarshalRead(r.Body, &m); err != nil {
		fail(w, 400, "Malformed request")
		return
	}
	p := m.Parameters
	refuse := func(text string) {
		writeJSON(w, 200, map[string]any{"action": m.Action, "status": "failure", "error": map[string]any{"message": text, "code": 400}})
	}
	switch {
	case m.Action != "members" && m.Action != "add_members" && m.Action != "remove_members":
		refuse("unknown action")
		return
	case p.CohortID == "" || p.Name == "":
		refuse("mixpanel_cohort_id and mixpanel_cohort_name are needed")
		return
	case len(p.Members) > maxMembers:
		refuse("too many members in a page")
		return
	case p.PageInfo.Page < 1 || p.PageInfo.Page > p.PageInfo.Total:
		refuse("page_info is out of range")
		return
	case m.Action == "members" && p.Session == "":
		refuse("mixpanel_session_id is needed")
		return
	}
	found := identities(p.Members)
	a.mu.Lock()
	defer a.mu.Unlock()
	seg := a.segmentFor(partnerSegment, p.CohortID, p.Name)
	seg.Name = p.Name // a renamed cohort renames its segment
	ids := s.importMembers(a, p.Members, found, m.Action != "remove_members")
	switch m.Action {
	case "add_members":
		for _, id := range ids {
			s.join(a, seg, id)
		}
	case "remove_members":
		for _, id := range ids {
			s.leaveSegment(a, seg, id)
		}
	case "members":
		s.fullPage(a, seg, m, ids)
	}
	seg.Updated = s.now()
	writeJSON(w, 200, map[string]any{"action": m.Action, "status": "success"})
}

// memberIDs is the part of a member that says who it is.
type memberIDs struct {
	Partner any `json:"$CleverTap_user_id"`
	ID      any `json:"mixpanel_distinct_id"`
}

// identities are the members' identities, "" for one that has none:
// `$CleverTap_user_id` when set, else the distinct_id.
func identities(members []jsontext.Value) []string {
	ids := make([]string, len(members))
	for i, raw := range members {
		var m memberIDs
		if json.Unmarshal(raw, &m) != nil {
			continue
		}
		if ids[i] = identityText(m.Partner); ids[i] == "" {
			ids[i] = identityText(m.ID)
		}
	}
	return ids
}

// importMembers upserts the profiles of a page and returns the identities of
// those that have one. The members are kept as they came and read when somebody
// asks for the profile: a full export brings a million that nobody looks at.
func (s *Sandbox) importMembers(a *account, members []jsontext.Value, ids []string, write bool) []string {
	good := make([]string, 0, len(ids))
	for i, id := range ids {
		if badIdentity(id) {
			a.logError(s.now(), 523, "partner", "identity is missing or forbidden")
			continue
		}
		good = append(good, id)
		if !write {
			continue
		}
		p := a.upsert(id)
		if p.unread = append(p.unread, members[i]); len(p.unread) > keptUnread {
			p.read()
		}
	}
	return good
}

// read applies the members that were kept unread. The account's mu is held.
func (p *profile) read() {
	for _, raw := range p.unread {
		var m map[string]any
		if json.Unmarshal(raw, &m) != nil {
			continue
		}
		for k, v := range m {
			switch k {
			case "mixpanel_distinct_id", "$CleverTap_user_id":
			case "email":
				setIfText(p, "Email", v)
			case "phone_number":
				setIfText(p, "Phone", v)
			default:
				p.set(k, v)
			}
		}
	}
	p.unread = nil
}

func setIfText(p *profile, key string, v any) {
	if t, ok := v.(string); ok && t != "" {
		p.set(key, t)
	}
}

func (s *Sandbox) fullPage(a *account, seg *segment, m partnerMessage, ids []string) {
	p := m.Parameters
	key := p.CohortID + "\x00" + p.Session
	ses := a.sessions[key]
	if ses == nil {
		if len(a.sessions) >= keptSessions {
			a.forgetSession()
		}
		ses = &session{pages: map[int]bool{}, members: map[string]struct{}{}, started: s.now()}
		a.sessions[key] = ses
	}
	if ses.done {
		return // a page sent again after the export was complete
	}
	ses.pages[p.PageInfo.Page] = true
	for _, id := range ids {
		ses.members[id] = struct{}{}
	}
	if len(ses.pages) < p.PageInfo.Total {
		return
	}
	for id := range seg.Members {
		if _, stays := ses.members[id]; !stays {
			s.leaveSegment(a, seg, id)
		}
	}
	for id := range ses.members {
		s.join(a, seg, id)
	}
	ses.done, ses.members, ses.pages = true, nil, nil
}

// forgetSession drops the oldest session.
func (a *account) forgetSession() {
	oldest := ""
	for k, v := range a.sessions {
		if oldest == "" || v.started.Before(a.sessions[oldest].started) {
			oldest = k
		}
	}
	delete(a.sessions, oldest)
}

func (s *Sandbox) join(a *account, seg *segment, id string) {
	if _, in := seg.Members[id]; in {
		return
	}
	seg.Members[id] = struct{}{}
	s.raisePartnerSync(a, seg, id, "Added")
}

func (s *Sandbox) leaveSegment(a *account, seg *segment, id string) {
	if _, in := seg.Members[id]; !in {
		return
	}
	delete(seg.Members, id)
	s.raisePartnerSync(a, seg, id, "Removed")
}

// raisePartnerSync raises the system event of a membership change
// (https://docs.clevertap.com/docs/mixpanel-integration).
func (s *Sandbox) raisePartnerSync(a *account, seg *segment, id, action string) {
	a.raise(userEvent{Identity: id, Event: "Partner Sync", Time: s.now(), sync: &partnerSync{seg.Name, seg.Key, action}})
	a.eventTotals["Partner Sync "+action]++
}
