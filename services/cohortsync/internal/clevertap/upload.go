package clevertap

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"strconv"
)

// MaxUploadRecords is how many records one upload may have.
const MaxUploadRecords = 1000

// MaxUploadBytes is our own cap on an upload's body; CleverTap names none.
const MaxUploadBytes = 4 << 20

// Record codes that are told apart. CodeServerSide is the one that is worth sending
// again as it was; CodeEmail and CodePhone refuse a record for one of its fields.
const (
	CodeEmail      = 515
	CodePhone      = 516
	CodeServerSide = 555
)

// RecordError is one record that CleverTap did not store.
type RecordError struct {
	// Index is the record's position in the request, from 0.
	Index int
	// Code is CleverTap's, e.g. 515 for a bad e-mail.
	Code int
	// Message is CleverTap's text.
	Message string
}

// Retryable reports whether the record may be stored when sent again.
func (e RecordError) Retryable() bool { return e.Code == CodeServerSide }

// uploadAnswer leaves out the echo of the records: it is not byte-identical,
// and it is personal data.
type uploadAnswer struct {
	answer
	Processed   int `json:"processed"`
	Unprocessed []struct {
		Code  looseInt `json:"code"`
		Error string   `json:"error"`
	} `json:"unprocessed"`
}

// The record's position is only in the text, from 1, sometimes without a space.
var recordNumber = regexp.MustCompile(`Skipped record number\s*:\s*(\d+)\s*$`)

// Upload sends profile or event records, each a JSON object, and returns those
// that were not stored. An error means that the call as a whole failed: with
// class Transient and status 200 CleverTap stored nothing and named no record.
func (c *Client) Upload(ctx context.Context, a Account, records [][]byte) ([]RecordError, error) {
	var b bytes.Buffer
	n := 8
	for _, r := range records {
		n += len(r) + 1
	}
	b.Grow(n)
	b.WriteString(`{"d":[`)
	for i, r := range records {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(r)
	}
	b.WriteString(`]}`)
	raw, status, err := c.call(ctx, a, http.MethodPost, a.BaseURL+"/1/upload", b.Bytes())
	if err != nil {
		return nil, err
	}
	var ans uploadAnswer
	if err := decode(raw, status, &ans); err != nil {
		return nil, err
	}
	switch ans.Status {
	case "success":
		if len(ans.Unprocessed) == 0 {
			return nil, nil
		}
	case "partial", "fail":
		if len(ans.Unprocessed) == 0 {
			return nil, bodyFailure(status, ans.answer, a, "nothing was stored, and no record is named")
		}
	default:
		return nil, notJSON(status)
	}
	out := make([]RecordError, 0, len(ans.Unprocessed))
	seen := make(map[int]bool, len(ans.Unprocessed))
	for _, u := range ans.Unprocessed {
		m := recordNumber.FindStringSubmatch(u.Error)
		if m == nil {
			return nil, &Error{Class: Transient, Status: status, Code: int(u.Code), Message: "a refused record is not named by its number"}
		}
		i, err := strconv.Atoi(m[1])
		if err != nil || i < 1 || i > len(records) {
			return nil, &Error{Class: Transient, Status: status, Code: int(u.Code), Message: "a refused record's number is outside the batch"}
		}
		if seen[i] {
			continue
		}
		seen[i] = true
		out = append(out, RecordError{Index: i - 1, Code: int(u.Code), Message: clean(recordNumber.ReplaceAllString(u.Error, ""), a)})
	}
	return out, nil
}

// Page is one page of a cohort message of the partner channel.
type Page struct {
	// Action is members, add_members or remove_members.
	Action string
	// ProjectID, CohortID, CohortName and CohortDescription say whose members these are.
	ProjectID, CohortID, CohortName, CohortDescription string
	// SessionID is the same for all pages of one export.
	SessionID string
	// Page and Pages are this page's number, from 1, and how many there are.
	Page, Pages int
	// Members are JSON objects.
	Members [][]byte
}

type partnerAnswer struct {
	Action string       `json:"action"`
	Status string       `json:"status"`
	Error  partnerError `json:"error"`
	// Code is where CleverTap's other endpoints have it.
	Code looseInt `json:"code"`
}

// partnerError is an object in Mixpanel's protocol and a text at CleverTap.
type partnerError struct {
	Message string   `json:"message"`
	Code    looseInt `json:"code"`
}

// UnmarshalJSON reads either form.
func (e *partnerError) UnmarshalJSON(b []byte) error {
	if json.Unmarshal(b, &e.Message) == nil {
		return nil
	}
	type plain partnerError
	return json.Unmarshal(b, (*plain)(e))
}

// SendPage sends one page to the account's partner URL. A page is accepted or
// refused whole. Source: https://docs.mixpanel.com/docs/cohort-sync/webhooks.
func (c *Client) SendPage(ctx context.Context, a Account, p Page) error {
	head, err := json.Marshal(struct {
		ProjectID   string `json:"mixpanel_project_id"`
		CohortID    string `json:"mixpanel_cohort_id"`
		Name        string `json:"mixpanel_cohort_name"`
		Description string `json:"mixpanel_cohort_description"`
		SessionID   string `json:"mixpanel_session_id"`
		PageInfo    struct {
			Total int `json:"total_pages"`
			Count int `json:"page_count"`
		} `json:"page_info"`
	}{p.ProjectID, p.CohortID, p.CohortName, p.CohortDescription, p.SessionID, struct {
		Total int `json:"total_pages"`
		Count int `json:"page_count"`
	}{p.Pages, p.Page}})
	if err != nil {
		return &Error{Class: Refused, Message: "the message can't be written", cause: err}
	}
	n := len(head) + 64
	for _, m := range p.Members {
		n += len(m) + 1
	}
	b := make([]byte, 0, n)
	b = append(b, `{"action":"`...)
	b = append(b, p.Action...)
	b = append(b, `","parameters":`...)
	b = append(b, head[:len(head)-1]...)
	b = append(b, `,"members":[`...)
	for i, m := range p.Members {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, m...)
	}
	b = append(b, "]}}"...)
	raw, status, err := c.call(ctx, a, http.MethodPost, a.PartnerURL, b)
	var ans partnerAnswer
	if err != nil {
		// A failure's words travel in error.message, which statusError can't read.
		if e, ok := errors.AsType[*Error](err); ok && status != 0 && json.Unmarshal(raw, &ans) == nil && ans.Error.Message != "" {
			e.Message, e.Code = clean(ans.Error.Message, a), int(ans.Error.Code)
		}
		return err
	}
	if err := decode(raw, status, &ans); err != nil {
		return err
	}
	switch {
	case ans.Status == "failure" || ans.Status == "fail":
		code := int(ans.Error.Code)
		if code == 0 {
			code = int(ans.Code)
		}
		if code < 300 || code > 599 {
			return &Error{Class: Refused, Status: status, Code: code, Message: clean(ans.Error.Message, a)}
		}
		e := statusError(code, nil, a)
		e.Status, e.Code = status, code
		if ans.Error.Message != "" {
			e.Message = clean(ans.Error.Message, a)
		}
		return e
	case ans.Status != "success" || ans.Action != p.Action:
		return notJSON(status)
	}
	return nil
}
