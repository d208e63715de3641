package clevertap

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
)

// MaxSegmentUsers is how many users one update of API segments may name. That
// they are counted over all groups of a call is the safe reading.
const MaxSegmentUsers = 100

// CreateSegment makes an empty API segment under a key of the caller's. A key
// that is taken already is no error: it is the answer to a repeated call.
// Source: https://developer.clevertap.com/docs/create-segment-api.
func (c *Client) CreateSegment(ctx context.Context, a Account, key, name string) error {
	body, err := json.Marshal([]any{struct {
		Name string `json:"segment_name"`
		Key  string `json:"customer_segment_id"`
	}{name, key}})
	if err != nil {
		return &Error{Class: Refused, Message: "the segment can't be written", cause: err}
	}
	raw, status, err := c.call(ctx, a, http.MethodPost, a.BaseURL+"/api/createSegment", body)
	if err == nil {
		err = accepted(raw, status, a)
	}
	if e := asError(err); e != nil && alreadyThere(e) {
		return nil
	}
	return err
}

// alreadyThere reports whether a refusal says that the key is taken: its shape is
// not documented, so the status or the words decide.
func alreadyThere(e *Error) bool {
	if e.Class == Throttled || e.Status == http.StatusUnauthorized || e.Status == http.StatusForbidden {
		return false
	}
	words := strings.ToLower(e.Message)
	return e.Status == http.StatusConflict || e.Code == http.StatusConflict ||
		strings.Contains(words, "already exist") || strings.Contains(words, "duplicate") || strings.Contains(words, "already created")
}

// UpdateSegment puts users, JSON objects with an identity, into the segment of a
// key, or takes them out. A success does not prove each user: CleverTap passes
// over those it does not take and tells its Error Stream only.
// Source: https://developer.clevertap.com/docs/update-segment-api.
func (c *Client) UpdateSegment(ctx context.Context, a Account, key string, remove bool, users [][]byte) error {
	action := "ADD"
	if remove {
		action = "REMOVE"
	}
	ref, err := json.Marshal([]any{struct {
		Key    string `json:"customer_segment_id"`
		Action string `json:"action"`
	}{key, action}})
	if err != nil {
		return &Error{Class: Refused, Message: "the segment's key can't be written", cause: err}
	}
	n := len(ref) + 64
	for _, u := range users {
		n += len(u) + 1
	}
	b := append(make([]byte, 0, n), `{"bulk_profiles":[{"user_profiles":[`...)
	for i, u := range users {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, u...)
	}
	b = append(b, `],"segments":`...)
	b = append(b, ref...)
	b = append(b, "}]}"...)
	raw, status, err := c.call(ctx, a, http.MethodPost, a.BaseURL+"/api/updateSegment", b)
	if err != nil {
		return err
	}
	return accepted(raw, status, a)
}

// accepted reads a 2xx answer of a segment call. Its keys are not documented: an
// object or an array of objects, wrapped or not, is a success unless one of them
// says that it failed.
func accepted(raw []byte, status int, a Account) error {
	var any json.RawMessage
	if err := decode(raw, status, &any); err != nil {
		return err
	}
	failed, ok := findFailure(any, 3)
	switch {
	case !ok:
		return notJSON(status)
	case failed != nil:
		return bodyFailure(status, *failed, a, "the segment call failed, and no reason is given")
	}
	return nil
}

// findFailure looks for a status of failure in an answer and the objects in its
// arrays. ok is false for what is neither object nor array.
func findFailure(raw json.RawMessage, depth int) (failed *answer, ok bool) {
	var list []json.RawMessage
	if json.Unmarshal(raw, &list) != nil {
		var object map[string]json.RawMessage
		if json.Unmarshal(raw, &object) != nil || object == nil {
			return nil, false
		}
		var ans answer
		if json.Unmarshal(raw, &ans) == nil && failure(ans.Status) {
			return &ans, true
		}
		if depth == 0 {
			return nil, true
		}
		for _, v := range object {
			if f, _ := findFailure(v, depth-1); f != nil {
				return f, true
			}
		}
		return nil, true
	}
	for _, v := range list {
		if f, _ := findFailure(v, depth-1); f != nil {
			return f, true
		}
	}
	return nil, true
}

func failure(status string) bool {
	switch strings.ToLower(status) {
	case "fail", "failed", "failure", "error":
		return true
	}
	return false
}

// bodyFailure is a 2xx whose body says that it failed. The code in it counts as a
// status would; without one nothing is known but that nothing was stored.
func bodyFailure(status int, ans answer, a Account, fallback string) *Error {
	e := &Error{Class: Transient}
	if ans.Code >= 300 && ans.Code <= 599 {
		e = statusError(int(ans.Code), nil, a)
	}
	e.Status, e.Code, e.Message = status, int(ans.Code), clean(ans.text(), a)
	if e.Message == "" {
		e.Message = fallback
	}
	return e
}
