package sandbox

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"regexp"
	"strings"
)

// maxRecords is the cap of one upload.
const maxRecords = 1000

type uploadRecord struct {
	Type        string         `json:"type"`
	Identity    any            `json:"identity"`
	ObjectID    string         `json:"objectId"`
	TS          any            `json:"ts"`
	ProfileData map[string]any `json:"profileData"`
	EvtName     string         `json:"evtName"`
	EvtData     map[string]any `json:"evtData"`
}

// upload takes profiles and events (https://developer.clevertap.com/docs/upload-user-profiles-api).
// One bad field refuses its record; the others are stored.
func (s *Sandbox) upload(a *account, w http.ResponseWriter, r *http.Request) {
	var body struct {
		D []json.RawMessage `json:"d"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil || body.D == nil {
		fail(w, 400, "Malformed request")
		return
	}
	if len(body.D) > maxRecords {
		fail(w, 400, fmt.Sprintf("At most %d records a call", maxRecords))
		return
	}
	dry := r.URL.Query().Get("dryRun") == "1"
	unprocessed := []map[string]any{}
	processed := 0
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, raw := range body.D {
		code, text := s.uploadOne(a, raw, dry)
		if code == 0 {
			processed++
			continue
		}
		unprocessed = append(unprocessed, map[string]any{"status": "fail", "code": code, "error": fmt.Sprintf("%s Skipped record number : %d", text, i+1), "record": raw})
		a.logError(s.now(), code, "upload", "%s", text)
	}
	status := "success"
	switch {
	case len(unprocessed) > 0 && processed == 0:
		status = "fail"
	case len(unprocessed) > 0:
		status = "partial"
	}
	writeJSON(w, 200, map[string]any{"status": status, "processed": processed, "unprocessed": unprocessed})
}

func (s *Sandbox) uploadOne(a *account, raw json.RawMessage, dry bool) (int, string) {
	var rec uploadRecord
	if json.Unmarshal(raw, &rec) != nil || (rec.Type != "profile" && rec.Type != "event") {
		return 524, "Type must be event or profile."
	}
	id := identityText(rec.Identity)
	if id == "" && rec.ObjectID != "" {
		p := a.byObjectID(rec.ObjectID)
		if p == nil {
			return 526, "CleverTap ID is invalid."
		}
		id = p.Identity
	}
	if badIdentity(id) {
		return 523, "Identity value cannot be undefined or null, and identity, fbId, gpId and objectId must be shorter than 1024 characters."
	}
	if code := s.knobs.refuses(id, rec.ProfileData); code == 555 {
		return 555, "Something went wrong on our side."
	} else if code != 0 {
		return code, "Refused by the knob partial_pattern."
	}
	if ts, ok := rec.TS.(float64); rec.TS != nil && (!ok || ts <= 0 || ts != math.Trunc(ts)) {
		return 525, "Timestamp should be present in the Unix Epoch format."
	}
	if rec.Type == "event" {
		return s.uploadEvent(a, id, rec, dry)
	}
	if code, text := checkProfile(rec.ProfileData); code != 0 {
		return code, text
	}
	if dry {
		return 0, ""
	}
	p := a.upsert(id)
	p.read()
	drop := s.knobs.get().SchemaDrop
	for k, v := range rec.ProfileData {
		if drop && !systemFields[k] {
			a.logError(s.now(), 0, "upload", "undefined user property was dropped: %s", k)
			continue
		}
		p.apply(k, v)
	}
	return 0, ""
}

// systemFields are the profile fields that every account has.
var systemFields = map[string]bool{
	"Name": true, "Email": true, "Phone": true, "Gender": true, "Employed": true, "Education": true, "Married": true, "Age": true, "DOB": true,
	"Photo": true, "Tz": true, "Timezone": true, "Customer Type": true, "MSG-email": true, "MSG-push": true, "MSG-sms": true, "MSG-whatsapp": true,
}

var reservedEvents = map[string]bool{
	"notificationsent": true, "notificationviewed": true, "notificationclicked": true, "notificationdelivered": true, "notificationreplied": true,
	"utmvisited": true, "applaunched": true, "appuninstalled": true, "appversionchanged": true, "stayed": true, "replysent": true,
	"experimentrendered": true, "reachableby": true, "identityset": true, "identityreset": true, "identityerror": true, "partnersync": true, "segmentmembershipchange": true,
}

func (s *Sandbox) uploadEvent(a *account, id string, rec uploadRecord, dry bool) (int, string) {
	if rec.EvtName == "" {
		return 509, "Event Name is incorrect. ErrorCode: 509 - Event name is mandatory."
	}
	if reservedEvents[strings.ToLower(strings.ReplaceAll(rec.EvtName, " ", ""))] {
		return 513, "Event Name is incorrect. ErrorCode: 513 - Trying to raise a restricted system event."
	}
	if len(rec.EvtData) > 256 {
		return 522, "Event has more than 256 properties."
	}
	if !dry {
		a.upsert(id)
		if s.knobs.get().SchemaDrop {
			a.logError(s.now(), 0, "upload", "undefined event was dropped: %s", rec.EvtName)
			return 0, ""
		}
		a.raise(userEvent{Identity: id, Event: rec.EvtName, Time: s.now(), Props: rec.EvtData})
	}
	return 0, ""
}

func identityText(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case float64:
		return fmt.Sprintf("%.0f", v)
	}
	return ""
}

var (
	emailPattern = regexp.MustCompile(`^[^@\s]+@[^@\s]+\.[^@\s.]+$`)
	phonePattern = regexp.MustCompile(`^\+[1-9][0-9]{6,14}$`)
)

func oneOf(v any, allowed ...string) bool {
	s, _ := v.(string)
	for _, a := range allowed {
		if s == a {
			return true
		}
	}
	return false
}

// checkProfile applies the rules of the system fields in the documented order of codes.
func checkProfile(d map[string]any) (int, string) {
	bad := func(key string, ok func(any) bool) bool { v, set := d[key]; return set && !ok(v) }
	switch {
	case bad("Email", func(v any) bool { s, _ := v.(string); return emailPattern.MatchString(s) }):
		return 515, "Profile data is incorrect. Email is not valid."
	case bad("Phone", func(v any) bool { s, _ := v.(string); return phonePattern.MatchString(s) }):
		return 516, "Profile data is incorrect. Phone number is not valid."
	case bad("Gender", func(v any) bool { return oneOf(v, "M", "F") }):
		return 514, "Profile data is incorrect. Gender needs to be M/F."
	case bad("Employed", func(v any) bool { return oneOf(v, "Y", "N") }):
		return 517, "Profile data is incorrect. Employed needs to be Y/N."
	case bad("Education", func(v any) bool { return oneOf(v, "School", "College", "Graduate") }):
		return 518, "Profile data is incorrect. Education needs to be School/College/Graduate.."
	case bad("Married", func(v any) bool { return oneOf(v, "Y", "N") }):
		return 519, "Profile data is incorrect. Married needs to be Y/N."
	case bad("Age", func(v any) bool { n, ok := v.(float64); return ok && n >= 0 && n < 200 }):
		return 520, "Profile data is incorrect. Age is invalid."
	}
	return 0, ""
}

// apply writes a value or runs one of CleverTap's operators. The account's mu is held.
func (p *profile) apply(key string, v any) {
	op, isOp := v.(map[string]any)
	if !isOp {
		p.set(key, v)
		return
	}
	for name, arg := range op {
		switch name {
		case "$delete":
			delete(p.Fields, key)
		case "$set":
			p.set(key, arg)
		case "$add":
			p.set(key, appendUnique(list(p.Fields[key]), list(arg)))
		case "$remove":
			kept := removeAll(list(p.Fields[key]), list(arg))
			if len(kept) == 0 {
				delete(p.Fields, key)
			} else {
				p.set(key, kept)
			}
		case "$incr", "$decr":
			n, _ := arg.(float64)
			if name == "$decr" {
				n = -n
			}
			cur, _ := p.Fields[key].(float64)
			p.set(key, cur+n)
		}
	}
}

func list(v any) []any {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		return v
	}
	return []any{v}
}

const maxMultiValues = 100

func appendUnique(have, more []any) []any {
	out := append([]any(nil), have...)
	for _, m := range more {
		if !containsValue(out, m) {
			out = append(out, m)
		}
	}
	if n := len(out) - maxMultiValues; n > 0 {
		out = out[n:] // the oldest go first
	}
	return out
}

func removeAll(have, gone []any) []any {
	var out []any
	for _, h := range have {
		if !containsValue(gone, h) {
			out = append(out, h)
		}
	}
	return out
}

func containsValue(l []any, v any) bool {
	for _, x := range l {
		if x == v {
			return true
		}
	}
	return false
}
