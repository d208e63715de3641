package sandbox

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"time"
)

// objectID is the CleverTap ID that the sandbox gives a profile.
func objectID(account, identity string) string {
	h := sha256.Sum256([]byte(account + "\x00" + identity))
	return hex.EncodeToString(h[:16])
}

// byObjectID finds a profile by its CleverTap ID. The caller holds mu.
func (a *account) byObjectID(id string) *profile {
	for _, p := range a.profiles {
		if objectID(a.id, p.Identity) == id {
			return p
		}
	}
	return nil
}

// record is a profile as the read API shows it. The caller holds mu.
func (a *account) record(p *profile) map[string]any {
	p.read()
	rec := map[string]any{"identity": p.Identity, "all_identities": []string{p.Identity}, "profileData": p.Fields,
		"platformInfo": []map[string]any{{"platform": "Web", "objectId": objectID(a.id, p.Identity)}}}
	for from, to := range map[string]string{"Email": "email", "Name": "name"} {
		if v, ok := p.Fields[from].(string); ok {
			rec[to] = v
		}
	}
	if p.Fields == nil {
		rec["profileData"] = map[string]any{}
	}
	return rec
}

// profile reads one user by identity, e-mail or CleverTap ID.
func (s *Sandbox) profile(a *account, w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	id, email, object := q.Get("identity"), q.Get("email"), q.Get("objectId")
	given := 0
	for _, v := range []string{id, email, object} {
		if v != "" {
			given++
		}
	}
	if given != 1 {
		fail(w, 400, "Exactly one of identity, email and objectId is needed")
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.profiles[id]
	switch {
	case object != "":
		p = a.byObjectID(object)
	case email != "":
		for _, c := range a.profiles {
			c.read()
			if e, _ := c.Fields["Email"].(string); strings.EqualFold(e, email) {
				p = c
				break
			}
		}
	}
	if p == nil {
		writeJSON(w, 200, map[string]any{"status": "fail", "error": "Profile not found", "code": 404})
		return
	}
	writeJSON(w, 200, map[string]any{"status": "success", "record": a.record(p)})
}

// cursor is an export that is read page by page.
type cursor struct {
	ids     []string
	events  map[string]map[string]any // what each user did, by identity
	event   string
	size    int
	pending int
	polls   map[int]int // by offset
	expires time.Time
}

// Rules of the export API (https://developer.clevertap.com/docs/get-user-profiles-api).
const (
	cursorLife = time.Hour
	maxBatch   = 5000
	minBatch   = 23 // below it CleverTap gives all at once
	maxCursors = 100
)

type profilesQuery struct {
	Event string `json:"event_name"`
	From  int    `json:"from"`
	To    int    `json:"to"`
	Props []struct {
		Name     string `json:"name"`
		Operator string `json:"operator"`
		Value    any    `json:"value"`
	} `json:"event_properties"`
}

// openProfiles opens an export of the users who raised an event. The sandbox
// knows the events it keeps, which are the last 5,000 at least.
func (s *Sandbox) openProfiles(a *account, w http.ResponseWriter, r *http.Request) {
	var in profilesQuery
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Event == "" {
		fail(w, 400, "Malformed request")
		return
	}
	size := maxBatch
	if text := r.URL.Query().Get("batch_size"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > maxBatch {
			fail(w, 400, fmt.Sprintf("batch_size: want 1 to %d", maxBatch))
			return
		}
		size = n
	}
	if size < minBatch {
		size = 1 << 30
	}
	from, err1 := time.Parse("20060102", strconv.Itoa(in.From))
	to, err2 := time.Parse("20060102", strconv.Itoa(in.To))
	if err1 != nil || err2 != nil || to.Before(from) {
		fail(w, 400, "from and to: want a date range as YYYYMMDD")
		return
	}
	for _, f := range in.Props {
		if f.Operator != "" && f.Operator != "equals" {
			fail(w, 400, "the sandbox knows the operator equals only")
			return
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c := &cursor{events: map[string]map[string]any{}, event: in.Event, size: size, pending: s.knobs.get().CursorPending, polls: map[int]int{}, expires: s.now().Add(cursorLife)}
	for _, e := range a.events {
		day := e.Time.UTC().Truncate(24 * time.Hour)
		if e.Event != in.Event || day.Before(from) || day.After(to) || !in.selects(e) {
			continue
		}
		if a.profiles[e.Identity] == nil {
			continue
		}
		ts := e.Time.Unix()
		did := c.events[e.Identity]
		if did == nil {
			did = map[string]any{"count": 0, "first_seen": ts}
			c.events[e.Identity] = did
			c.ids = append(c.ids, e.Identity)
		}
		did["count"], did["last_seen"] = did["count"].(int)+1, ts
	}
	sort.Strings(c.ids)
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	id := hex.EncodeToString(b)
	if len(a.cursors) >= maxCursors {
		a.forgetCursor()
	}
	a.cursors[id] = c
	writeJSON(w, 200, map[string]any{"status": "success", "cursor": cursorText(id, 0)})
}

func (q profilesQuery) selects(e userEvent) bool {
	for _, f := range q.Props {
		if fmt.Sprint(e.shown().Props[f.Name]) != fmt.Sprint(f.Value) {
			return false
		}
	}
	return true
}

func (a *account) forgetCursor() {
	oldest := ""
	for id, c := range a.cursors {
		if oldest == "" || c.expires.Before(a.cursors[oldest].expires) {
			oldest = id
		}
	}
	delete(a.cursors, oldest)
}

// cursorText is percent-encoded already, as CleverTap's is: a client that encodes
// it again gets "Incorrect Usage".
func cursorText(id string, at int) string {
	return url.QueryEscape(base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%s+%d?", id, at)))
}

// pageProfiles reads one page; the same cursor again is the same page.
func (s *Sandbox) pageProfiles(a *account, w http.ResponseWriter, r *http.Request) {
	raw, err := base64.StdEncoding.DecodeString(r.URL.Query().Get("cursor"))
	id, rest, ok := strings.Cut(string(raw), "+")
	at, aerr := strconv.Atoi(strings.TrimSuffix(rest, "?"))
	if err != nil || !ok || aerr != nil {
		writeJSON(w, 400, map[string]any{"status": "fail", "error": "Incorrect Usage", "code": 3})
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.cursors[id]
	if c == nil || s.now().After(c.expires) {
		fail(w, 400, "CURSOR_INVALIDATED")
		return
	}
	if c.polls[at]++; c.polls[at] <= c.pending {
		writeJSON(w, 200, map[string]any{"status": "fail", "error": "Request still in progress, please retry later", "code": 2})
		return
	}
	if at < 0 || at >= len(c.ids) {
		writeJSON(w, 200, map[string]any{"status": "success"})
		return
	}
	end := min(len(c.ids), at+c.size)
	records := []map[string]any{}
	for _, who := range c.ids[at:end] {
		if p := a.profiles[who]; p != nil {
			rec := a.record(p)
			rec["events"] = map[string]any{c.event: c.events[who]}
			records = append(records, rec)
		}
	}
	out := map[string]any{"status": "success", "records": records}
	if end < len(c.ids) {
		out["next_cursor"] = cursorText(id, end)
	}
	writeJSON(w, 200, out)
}

// maxDeletes is how many users one call deletes.
const maxDeletes = 100

// deleteProfiles deletes users at once; CleverTap takes up to two days
// (https://developer.clevertap.com/docs/delete-user-profile-api).
func (s *Sandbox) deleteProfiles(a *account, w http.ResponseWriter, r *http.Request) {
	var in map[string]any
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, 400, "Malformed request")
		return
	}
	ids, guids := list(in["identity"]), list(in["guid"])
	switch n := len(ids) + len(guids); {
	case len(ids) > 0 && len(guids) > 0:
		fail(w, 400, "Either identity or guid, not both")
		return
	case n == 0 || n > maxDeletes:
		fail(w, 400, fmt.Sprintf("Want 1 to %d users", maxDeletes))
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, v := range ids {
		a.deleteProfile(identityText(v))
	}
	for _, v := range guids {
		g, _ := v.(string)
		if p := a.byObjectID(g); p != nil {
			a.deleteProfile(p.Identity)
		}
	}
	writeJSON(w, 200, map[string]any{"status": "success", "code": 200})
}

func (a *account) deleteProfile(identity string) {
	delete(a.profiles, identity)
	for _, seg := range a.segments {
		delete(seg.Members, identity)
	}
}
