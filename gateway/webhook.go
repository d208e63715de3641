package gateway

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	cohortsyncv1 "github.com/cohortbridge/cohortbridge/gen/go/cohortbridge/cohortsync/v1"
	"github.com/cohortbridge/cohortbridge/platform/inflight"
)

// webhook receives cohorts as Mixpanel's custom webhook sends them
// (https://docs.mixpanel.com/docs/cohort-sync/webhooks). Mixpanel pauses a webhook on
// 400, 401, 403 and 404, and tries again on 429 and 5xx, so each status says which.
type webhook struct {
	receiver cohortsyncv1.ReceiverServiceClient
	gate     *inflight.Gate
	maxBody  int64
}

// cohortMessage is a page as it comes.
type cohortMessage struct {
	Action     string `json:"action"`
	Parameters struct {
		Project     text `json:"mixpanel_project_id"`
		Cohort      text `json:"mixpanel_cohort_id"`
		Name        text `json:"mixpanel_cohort_name"`
		Description text `json:"mixpanel_cohort_description"`
		Session     text `json:"mixpanel_session_id"`
		Page        struct {
			Total int32 `json:"total_pages"`
			Count int32 `json:"page_count"`
		} `json:"page_info"`
		Members []map[string]json.RawMessage `json:"members"`
	} `json:"parameters"`
}

// text is a string; a number stands for its digits.
type text string

// UnmarshalJSON implements json.Unmarshaler.
func (t *text) UnmarshalJSON(b []byte) error {
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	switch v := v.(type) {
	case string:
		*t = text(v)
	case float64:
		*t = text(b)
	case nil:
	default:
		return errors.New("must be a string")
	}
	return nil
}

// memberProperties are the profile properties of a member's fields; others keep their name.
var memberProperties = map[string]string{"email": "$email", "first_name": "$first_name", "last_name": "$last_name", "phone_number": "$phone"}

const memberID = "mixpanel_distinct_id"

// ServeHTTP implements http.Handler.
func (h *webhook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	room, ok := h.gate.Enter(0)
	if !ok {
		w.Header().Set("Retry-After", "1")
		webhookAnswer(w, "", http.StatusTooManyRequests, busy)
		return
	}
	defer room.Leave()
	m := &cohortMessage{}
	if code, why := h.read(w, r, room, m); why != "" {
		webhookAnswer(w, m.Action, code, why)
		return
	}
	req, err := m.request("projects/" + r.PathValue("project"))
	if err == nil {
		ctx := metadata.AppendToOutgoingContext(r.Context(), "authorization", r.Header.Get("Authorization"))
		_, err = h.receiver.ReceiveMembers(ctx, req)
	}
	s := status.Convert(err)
	switch s.Code() {
	case codes.OK:
		webhookAnswer(w, m.Action, http.StatusOK, "")
		return
	case codes.Unauthenticated:
		w.Header().Set("WWW-Authenticate", `Basic realm="cohortbridge"`)
	case codes.Unavailable, codes.ResourceExhausted:
		w.Header().Set("Retry-After", "1")
	default:
	}
	webhookAnswer(w, m.Action, runtime.HTTPStatusFromCode(s.Code()), s.Message())
}

// read reads the body; why is empty when it could.
func (h *webhook) read(w http.ResponseWriter, r *http.Request, room *inflight.Ticket, m *cohortMessage) (code int, why string) {
	if r.Body == nil {
		r.Body = http.NoBody
	}
	if !room.Grow(min(h.maxBody, max(r.ContentLength, 1<<20))) {
		w.Header().Set("Retry-After", "1")
		return http.StatusTooManyRequests, busy
	}
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, h.maxBody))
	switch {
	case err != nil:
		if code, why = bodyProblem(err); code == http.StatusBadRequest {
			code = http.StatusServiceUnavailable // broken off: the sender is to come back, not to pause
		}
		return code, why
	case json.Unmarshal(b, m) != nil:
		m.Action = ""
		return http.StatusBadRequest, "the body is no message of Mixpanel's cohort webhook: want JSON with action and parameters"
	}
	return 0, ""
}

var webhookActions = map[string]cohortsyncv1.ReceiveMembersRequest_Action{
	"members": cohortsyncv1.ReceiveMembersRequest_ACTION_MEMBERS, "add_members": cohortsyncv1.ReceiveMembersRequest_ACTION_ADD_MEMBERS,
	"remove_members": cohortsyncv1.ReceiveMembersRequest_ACTION_REMOVE_MEMBERS,
}

func (m *cohortMessage) request(parent string) (*cohortsyncv1.ReceiveMembersRequest, error) {
	p := &m.Parameters
	action, ok := webhookActions[m.Action]
	if !ok {
		return nil, status.Error(codes.InvalidArgument, "action: want members, add_members or remove_members")
	}
	req := &cohortsyncv1.ReceiveMembersRequest{
		Parent: parent, Action: action, MixpanelProjectId: string(p.Project), MixpanelCohortId: string(p.Cohort), MixpanelCohortName: string(p.Name), MixpanelCohortDescription: string(p.Description),
		MixpanelSessionId: string(p.Session), TotalPages: p.Page.Total, PageCount: p.Page.Count,
	}
	for i, fields := range p.Members {
		var id text
		if raw, ok := fields[memberID]; !ok || json.Unmarshal(raw, &id) != nil {
			return nil, status.Error(codes.InvalidArgument, "parameters.members["+strconv.Itoa(i)+"]."+memberID+": must be a string")
		}
		// Whoever is in a Mixpanel cohort has a profile there, so they have one here,
		// also with nothing else in it.
		set := map[string]json.RawMessage{"$" + memberID: fields[memberID]}
		for name, v := range fields {
			if s := string(v); name == memberID || s == `""` || s == "null" {
				continue // says nothing, and must not overwrite what is known
			}
			if known, ok := memberProperties[name]; ok {
				name = known
			}
			set[name] = v
		}
		b, err := json.Marshal(set)
		if err != nil {
			return nil, err
		}
		req.Members = append(req.Members, &cohortsyncv1.ReceivedMember{DistinctId: string(id), Properties: b})
	}
	return req, nil
}

// webhookAnswer writes the documented answer.
func webhookAnswer(w http.ResponseWriter, action string, code int, why string) {
	type failure struct {
		Message string `json:"message"`
		Code    int    `json:"code"`
	}
	out := struct {
		Action string   `json:"action"`
		Status string   `json:"status"`
		Error  *failure `json:"error,omitempty"`
	}{action, "success", nil}
	if code != http.StatusOK {
		out.Status, out.Error = "failure", &failure{why, code}
	}
	b, err := json.Marshal(out)
	if err != nil {
		b = []byte(`{"status":"failure"}`)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(b) // the sender went away
}
