package sandbox

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
)

// Limits of API segments (https://developer.clevertap.com/docs/create-segment-api
// and …/update-segment-api). That the users are counted over all groups is a
// guess to the safe side.
const (
	maxSegmentsPerCall = 100
	maxUsersPerCall    = 100
	maxSegments        = 2500
)

// createSegment makes empty segments, all or none. Nothing documents what a
// repeated customer_segment_id answers but that it is an error.
func (s *Sandbox) createSegment(a *account, w http.ResponseWriter, r *http.Request) {
	var in []struct {
		Name string `json:"segment_name"`
		Key  string `json:"customer_segment_id"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || len(in) == 0 {
		fail(w, 400, "Malformed request")
		return
	}
	if len(in) > maxSegmentsPerCall {
		fail(w, 400, fmt.Sprintf("At most %d segments a call", maxSegmentsPerCall))
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	names, keys := map[string]bool{}, map[string]bool{}
	for _, x := range in {
		switch {
		case x.Name == "" || x.Key == "":
			fail(w, 400, "segment_name and customer_segment_id are mandatory")
			return
		case names[x.Name] || keys[x.Key]:
			fail(w, 400, "segment_name and customer_segment_id must be unique within the request")
			return
		case a.segments[string(apiSegment)+"\x00"+x.Key] != nil:
			fail(w, 409, "customer_segment_id already exists: "+x.Key)
			return
		}
		names[x.Name], keys[x.Key] = true, true
	}
	if len(a.segments)+len(in) > maxSegments {
		fail(w, 400, fmt.Sprintf("At most %d segments an account", maxSegments))
		return
	}
	made := []map[string]any{}
	for _, x := range in {
		seg := a.segmentFor(apiSegment, x.Key, x.Name)
		seg.Updated = s.now()
		made = append(made, map[string]any{"id": seg.ID, "segment_name": x.Name, "customer_segment_id": x.Key})
	}
	writeJSON(w, 200, map[string]any{"status": "success", "segments": made, "code": 200})
}

// segmentRef names a segment and what happens to its users.
type segmentRef struct {
	ID     any    `json:"ct_segment_id"`
	Key    string `json:"customer_segment_id"`
	Action string `json:"action"`
}

type profileRef struct {
	Identity any    `json:"identity"`
	GUID     string `json:"guid"`
}

// updateSegment puts users in and takes them out. What can't be done for one user
// is left out of the answer and written to the Error Stream: a success says
// nothing of a single user.
func (s *Sandbox) updateSegment(a *account, w http.ResponseWriter, r *http.Request) {
	var in struct {
		Groups []struct {
			Users    []profileRef `json:"user_profiles"`
			Segments []segmentRef `json:"segments"`
		} `json:"bulk_profiles"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || len(in.Groups) == 0 {
		fail(w, 400, "Malformed request")
		return
	}
	users, segments := 0, 0
	for _, g := range in.Groups {
		users, segments = users+len(g.Users), segments+len(g.Segments)
		if len(g.Users) == 0 || len(g.Segments) == 0 {
			fail(w, 400, "user_profiles and segments are mandatory")
			return
		}
		for _, ref := range g.Segments {
			if ref.Action != "ADD" && ref.Action != "REMOVE" {
				fail(w, 400, "action must be ADD or REMOVE")
				return
			}
		}
	}
	if users > maxUsersPerCall || segments > maxSegmentsPerCall {
		fail(w, 400, fmt.Sprintf("At most %d user profiles and %d segments a call", maxUsersPerCall, maxSegmentsPerCall))
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, g := range in.Groups {
		for _, ref := range g.Segments {
			if a.apiSegment(ref) == nil {
				fail(w, 400, "Segment does not exist or is no API segment")
				return
			}
		}
	}
	for _, g := range in.Groups {
		for _, ref := range g.Segments {
			seg := a.apiSegment(ref)
			for _, u := range g.Users {
				s.changeMembership(a, seg, u, ref.Action)
			}
			seg.Updated = s.now()
		}
	}
	writeJSON(w, 200, map[string]any{"status": "success"})
}

// apiSegment finds a segment by either id; nil for one of another kind. The
// caller holds mu.
func (a *account) apiSegment(ref segmentRef) *segment {
	if ref.Key != "" {
		return a.segments[string(apiSegment)+"\x00"+ref.Key]
	}
	id, _ := strconv.ParseInt(identityText(ref.ID), 10, 64)
	for _, seg := range a.segments {
		if seg.Kind == apiSegment && seg.ID == id {
			return seg
		}
	}
	return nil
}

func (s *Sandbox) changeMembership(a *account, seg *segment, ref profileRef, action string) {
	id := identityText(ref.Identity)
	if id == "" && ref.GUID != "" {
		if p := a.byObjectID(ref.GUID); p != nil {
			id = p.Identity
		}
	}
	if badIdentity(id) || s.knobs.passesOver(id) {
		a.logError(s.now(), 0, "update segment", "user was skipped; Segment ID %d, Customer Segment ID %s, User Identity %s", seg.ID, seg.Key, id)
		return
	}
	_, in := seg.Members[id]
	switch {
	case action == "ADD" && !in:
		a.upsert(id)
		seg.Members[id] = struct{}{}
	case action == "REMOVE" && in:
		delete(seg.Members, id)
	default:
		return
	}
	a.raise(userEvent{Identity: id, Event: "Segment Membership Change", Time: s.now(), change: &segmentChange{seg.Name, seg.Key, action, seg.ID}})
	a.eventTotals["Segment Membership Change "+action]++
}
