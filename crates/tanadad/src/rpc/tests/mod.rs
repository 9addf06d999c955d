mod calls;
mod events;
mod logins;
mod tasks;
