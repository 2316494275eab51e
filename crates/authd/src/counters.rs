//! What the daemon has done and refused, for `status` and metrics.

use muster_proto::enrollment::Rejection;

muster_service::counters! {
    /// Counters since the start.
    pub struct Counters {
        /// Connections to the enrollment port.
        enrollment_connections_total,
        /// Closed at once, because there were too many.
        enrollment_connections_over_cap_total,
        /// Closed to make room for another address.
        enrollment_connections_evicted_total,
        /// Closed at once, because their address or all together came too fast.
        enrollment_connections_rate_limited_total,
        /// TLS handshakes that failed or took too long.
        enrollment_handshakes_failed_total,
        /// Client certificates that do not name the address they came from.
        enrollment_certificates_refused_total,
        /// Connections that sent no whole request in time, or one that is too long.
        enrollment_requests_incomplete_total,
        /// Connections that closed without a request.
        enrollment_requests_absent_total,
        /// Keys handed out on the enrollment port.
        enrollments_total,
        /// Keys that could not be delivered and were taken back.
        enrollments_not_delivered_total,
        /// Requests refused for the password.
        enrollments_refused_password_total,
        /// Requests that were none, or broke a rule of a field.
        enrollments_refused_invalid_total,
        /// Requests refused for the version.
        enrollments_refused_version_total,
        /// Requests refused for their groups.
        enrollments_refused_group_total,
        /// Requests refused because the address is taken.
        enrollments_refused_duplicate_ip_total,
        /// Requests refused because the name is taken.
        enrollments_refused_duplicate_name_total,
        /// Requests that could not be granted because of an error or a limit of ours.
        enrollments_failed_total,
        /// Requests on the local socket.
        local_requests_total,
        /// Requests on the local socket that were answered with an error.
        local_errors_total,
        /// Connections to the local socket that sent no whole request in time.
        local_requests_incomplete_total,
        /// Agents added over the local socket.
        local_added_total,
        /// Agents removed, for whatever reason.
        agents_removed_total,
        /// Agents removed because they were disconnected for too long.
        agents_removed_stale_total,
        /// Agents that gave way to another.
        agents_replaced_total,
        /// Times that lines were added to the key file.
        key_file_appends_total,
        /// Times that the key file was written whole.
        key_file_writes_total,
        /// Writes that failed, the requests in them refused.
        key_file_write_errors_total,
        /// Edits of the key file by others that were taken over.
        key_file_edits_total,
        /// Refusals that were not told as events, because there were too many.
        rejection_events_dropped_total,
        /// Times that remoted could not be asked how an agent is connected.
        liveness_unknown_total,
    }
}

impl Counters {
    /// Counts a refusal on the enrollment port.
    pub fn count_rejection(&self, rejection: &Rejection) {
        match rejection {
            Rejection::InvalidPassword => &self.enrollments_refused_password_total,
            Rejection::VersionTooHigh => &self.enrollments_refused_version_total,
            Rejection::InvalidGroupName(_) | Rejection::TooManyGroups | Rejection::UnknownGroup(_) => {
                &self.enrollments_refused_group_total
            }
            Rejection::DuplicateAddress(_) => &self.enrollments_refused_duplicate_ip_total,
            Rejection::DuplicateName(_) => &self.enrollments_refused_duplicate_name_total,
            Rejection::Internal(_) => &self.enrollments_failed_total,
            _ => &self.enrollments_refused_invalid_total,
        }
        .increment();
    }
}
